"""FLAP against its own code, structured OBS against trying every item, and gates against finite differences.

Shape suffixes: O out, C items, W columns per item, I in, K tokens of all sequences.
"""

import json
from pathlib import Path

import pytest
import torch
from calibrated import statistics_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from selfprune.allocations.target import Target
from selfprune.errors import ConfigError, PruningError
from selfprune.levels.levels_config import LevelKind
from selfprune.models.loading import LoadedModel
from selfprune.models.structures import list_items
from selfprune.models.units import by_item, find_blocks, weight_view
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.closed_forms.flap_global import FLAPGlobal, StandardisedMetric
from selfprune.pruners.refit import fit_kept
from selfprune.pruners.structures.coupled_taylor import CoupledTaylor
from selfprune.pruners.structures.flap import FLAP
from selfprune.pruners.structures.gate_fisher import GateFisher
from selfprune.pruners.structures.obs import OBS
from selfprune.pruners.structures.wanda_sp import WandaSP
from selfprune.pruning.calibration import calibrate_blocks
from selfprune.pruning.measurements import Measurements
from selfprune.recoveries.bias_compensation import BiasCompensation
from selfprune.recoveries.least_squares import LeastSquares
from selfprune.statistics.input_fluctuation import Metric

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
N_OUT, N_ITEMS = 6, 8


@pytest.fixture(scope="module")
def flap_cases():
    """FLAP's own masks of a model with heads of 128, and what our statistics of that model are."""
    if not GOLDEN.exists():
        pytest.skip("the golden vectors are not beside this checkout")
    tensors = load_file(GOLDEN / "tokens.safetensors") | load_file(GOLDEN / "model_expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "model_mha_hd128", dtype=torch.float32).eval().requires_grad_(False)
    loaded = LoadedModel(model, None, list_items(model, FLAP().items()), find_blocks(model)[1], torch.device("cpu"))
    return loaded, tensors, statistics_of(loaded, tensors["mha.calib_ids"], FLAP(), batch_size=1)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_flap_removes_what_its_own_code_removes_layer_by_layer(ratio, flap_cases):
    loaded, tensors, statistics = flap_cases
    ids = {case["id"] for case in json.loads((GOLDEN / "index.json").read_text())["cases"]}
    assert f"model.flap.UL-UM.{ratio}" in ids
    for unit in loaded.units:
        name = "head_mask" if unit.kind == "self_attn" else "channel_mask"
        expected_C = tensors[f"model.flap.UL-UM.{ratio}.{name}"][unit.block].bool()
        weight_OCW = by_item(unit, weight_view(loaded.model, unit))
        pruned = FLAP().prune(weight_OCW, statistics[unit.name], int((~expected_C).sum()))
        assert torch.equal(pruned.kept, expected_C), unit.name


def test_flaps_metric_of_channels_is_that_of_its_own_code(flap_cases):
    loaded, tensors, statistics = flap_cases
    for unit in loaded.units:
        if unit.kind == "mlp":
            scores_C = FLAP().scores(by_item(unit, weight_view(loaded.model, unit)), statistics[unit.name])
            expected_C = tensors["model.flap.UL-UM.0.5.mlp_wifv_per_channel"][unit.block]
            torch.testing.assert_close(scores_C, expected_C, rtol=1e-4, atol=0)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_one_threshold_over_all_and_the_biases_are_those_of_its_own_code(ratio, flap_cases):
    loaded, tensors, _ = flap_cases
    case = f"model.flap.AL-AM.{ratio}"
    kept = {"self_attn": tensors[f"{case}.head_mask"].bool(), "mlp": tensors[f"{case}.channel_mask"].bool()}
    windows_NT, removed = tensors["mha.calib_ids"], {u.name: int((~kept[u.kind][u.block]).sum()) for u in loaded.units}
    measurement, measurements = StandardisedMetric(Metric.WIFV), Measurements(loaded, [StandardisedMetric(Metric.WIFV)])
    for units, gathered in calibrate_blocks(loaded, windows_NT, FLAP(), 1):
        measurements.take_items(measurement, units, gathered)
    grid = FLAP().grid(loaded.units, step=1e-9)
    n_weights = grid.n_removed_weights(removed)
    space = SearchSpace(grid, Target(n_weights, grid.levels, n_weights, grid.n_weights()), of_items=measurements.of_items)
    shares = FLAPGlobal().sparsities(space)
    assert {unit.name: round(shares[unit.name] * unit.n_items) for unit in loaded.units} == removed

    pruner = BiasCompensation().around(FLAP())
    of_units = statistics_of(loaded, windows_NT, pruner, batch_size=1)
    for unit in loaded.units:
        pruned = pruner.prune(by_item(unit, weight_view(loaded.model, unit)), of_units[unit.name], removed[unit.name])
        assert torch.equal(pruned.kept, kept[unit.kind][unit.block]), unit.name
        bias = "o_proj_bias" if unit.kind == "self_attn" else "down_proj_bias"
        expected_O = tensors[f"{case}.{bias}"][unit.block]
        found_O = torch.zeros_like(expected_O) if pruned.bias_O is None else pruned.bias_O
        torch.testing.assert_close(found_O, expected_O, atol=1e-5, rtol=0)


def test_a_gate_is_worth_what_scaling_its_item_changes(load_tiny):
    loaded = load_tiny("llama").for_items(CoupledTaylor().items())
    windows_NT = torch.tensor([[5, 9, 1, 7, 30, 2, 11], [4, 4, 8, 100, 3, 2, 1]])
    taylor, fisher = (statistics_of(loaded, windows_NT, pruner, 1) for pruner in (CoupledTaylor(), GateFisher()))

    def loss(window_1T):
        return loaded.model(window_1T, labels=window_1T).loss.double()

    for unit in loaded.units:
        weight_OCW = by_item(unit, weight_view(loaded.model, unit))
        gradients = []
        for window_T in windows_NT:
            weight_OCW[:, 1] *= 1 + 1e-2
            above = loss(window_T[None])
            weight_OCW[:, 1] *= (1 - 1e-2) / (1 + 1e-2)
            gradients.append((above - loss(window_T[None])) / 2e-2)
            weight_OCW[:, 1] /= 1 - 1e-2
        gradients = torch.stack(gradients).float()
        scores = [
            pruner.scores(weight_OCW, of[unit.name])[1] for pruner, of in ((CoupledTaylor(), taylor), (GateFisher(), fisher))
        ]
        torch.testing.assert_close(scores[0], gradients.mean().abs(), rtol=2e-2, atol=2e-5)
        torch.testing.assert_close(scores[1], gradients.square().mean() / 2, rtol=4e-2, atol=1e-8)


def data(width=1, n_tokens=400, seed=0):
    """Weights [O, C, W] and inputs [1, K, I] that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    n_in = N_ITEMS * width
    mixed_II = torch.randn(n_in, n_in, generator=generator)
    inputs_KI = torch.randn(n_tokens, n_in, generator=generator) @ mixed_II + torch.randn(n_in, generator=generator)
    return torch.randn(N_OUT, N_ITEMS, width, generator=generator), inputs_KI[None]


def seen(pruner, inputs_NKI):
    statistics = pruner.statistics(1, inputs_NKI.shape[2], 1)
    for inputs_KI in inputs_NKI:
        statistics.update(inputs_KI[None])
    return statistics


@pytest.mark.parametrize("metric", Metric)
def test_each_metric_of_flap_is_its_formula(metric):
    weight_OCW, inputs_NKI = data()
    inputs_NKI = torch.cat([inputs_NKI, 2 * inputs_NKI.roll(1, 1)])
    statistics = FLAP().statistics(1, N_ITEMS, 2)
    statistics.update(inputs_NKI)
    mean_I = inputs_NKI.mean(dim=(0, 1))
    fluctuation_I = (inputs_NKI[1] - mean_I).square().sum(dim=0) / 2
    weight_OI = weight_OCW[:, :, 0]
    expected = {
        Metric.WIFV: fluctuation_I * weight_OI.square().sum(dim=0),
        Metric.IFV: fluctuation_I,
        Metric.WIFN: weight_OI.abs().mean(dim=0) * (inputs_NKI.square().sum(dim=(0, 1)) / 2).sqrt(),
    }
    torch.testing.assert_close(FLAP(metric=metric).scores(weight_OCW, statistics), expected[metric], rtol=1e-4, atol=1e-5)


def output_error(weight_OI, fitted_OI, inputs_KI):
    return ((weight_OI - fitted_OI).double() @ inputs_KI.double().T).square().sum().item()


def test_damping_draws_the_kept_columns_to_what_they_were():
    weight_OCW, inputs_NKI = data()
    weight_OI, kept_I = weight_OCW[:, :, 0], torch.arange(N_ITEMS) >= 3
    gram_II = inputs_NKI[0].T @ inputs_NKI[0]
    moved = [(fit_kept(weight_OI, gram_II, kept_I, share) - weight_OI * kept_I).norm() for share in (0, 0.01, 0.1, 1)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.7 * moved[0]


def test_what_cannot_be_fitted_is_damped_until_it_can_and_nan_is_told():
    weight_OI, kept_I = torch.ones(2, 4), torch.tensor([True, True, False, True])
    equal_II = torch.ones(4, 4)
    fitted_OI = fit_kept(weight_OI, equal_II, kept_I, 0)
    torch.testing.assert_close(fitted_OI.sum(dim=1), torch.full((2,), 4.0), rtol=1e-2, atol=0)
    with pytest.raises(PruningError, match="the inputs of a unit are not finite"):
        fit_kept(weight_OI, torch.full((4, 4), torch.nan), kept_I, 0.01)


@pytest.mark.parametrize("width", [1, 3])
def test_obs_removes_each_time_the_item_whose_loss_costs_least_after_the_refit(width):
    weight_OCW, inputs_NKI = data(width)
    weight_OI, inputs_KI = weight_OCW.flatten(1), inputs_NKI[0]
    gram_II = inputs_KI.T @ inputs_KI
    pruner = OBS(n_rounds=N_ITEMS, percent_damping=1e-6)
    ranks_C = pruner.ranks(weight_OCW, seen(pruner, inputs_NKI))
    gone = []
    for _ in range(N_ITEMS - 1):
        errors = {}
        for item in set(range(N_ITEMS)) - set(gone):
            kept_I = torch.tensor([i not in (*gone, item) for i in range(N_ITEMS)]).repeat_interleave(width)
            errors[item] = output_error(weight_OI, fit_kept(weight_OI, gram_II, kept_I, 1e-6), inputs_KI)
        gone.append(min(errors, key=errors.get))
    assert ranks_C.argsort()[:-1].tolist() == gone


def test_rounds_of_several_items_keep_to_the_count_and_nearly_to_the_error():
    weight_OCW, inputs_NKI = data()
    exact, coarse = OBS(n_rounds=N_ITEMS), OBS(n_rounds=4)
    errors = [
        output_error(weight_OCW[:, :, 0], pruner.prune(weight_OCW, seen(pruner, inputs_NKI), 4).weight_OI, inputs_NKI[0])
        for pruner in (exact, coarse)
    ]
    assert errors[0] <= errors[1] < 3 * errors[0]


def test_a_search_compares_refitted_levels():
    assert LevelKind.of(WandaSP()) is LevelKind.MASKS
    assert LevelKind.of(LeastSquares().around(WandaSP())) is LevelKind.BUILT
    assert LevelKind.of(OBS()) is LevelKind.BUILT


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OBS(n_rounds=0), "pruner.n_rounds must be 1 or more, got 0"),
        (lambda: OBS(percent_damping=-1.0), r"pruner.percent_damping must lie in \[0, 1\], got -1.0"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
