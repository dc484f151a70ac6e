"""Recoveries around every pruner: the same items go, and what is left comes nearer to the dense output.

Shape suffixes: O out, I in, C items, W columns per item, N sequences, T tokens.
"""

import json
from dataclasses import replace

import pytest
import torch
from calibrated import statistics_of
from transformers import AutoModelForCausalLM

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Item
from selfprune.configs.methods import find_methods
from selfprune.errors import ConfigError, ModelError, PruningError
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.exports.save import save_checkpoint
from selfprune.levels.levels_config import LevelKind
from selfprune.levels.mask_levels import MaskLevels
from selfprune.models.fittings import with_biases_in_place
from selfprune.models.loading import load_model, register_per_layer
from selfprune.models.model_config import ModelConfig
from selfprune.pruners.structures.flap import FLAP
from selfprune.pruners.structures.obs import OBS
from selfprune.pruners.structures.wanda_sp import WandaSP
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.pruners.weights.wanda import Wanda
from selfprune.pruning.sequential import prune_in_place
from selfprune.recoveries.bias_compensation import BiasCompensation
from selfprune.recoveries.least_squares import LeastSquares
from selfprune.recoveries.none import NoRecovery

PRUNERS = [method for method in find_methods("pruner").values() if Item.EXPERT not in method().items()]
WINDOWS = torch.randint(1, 300, (6, 24), generator=torch.Generator().manual_seed(0))
N_OUT, N_ITEMS = 6, 8


def seen(pruner, inputs_NTI, n_row_groups=1):
    statistics = pruner.statistics(n_row_groups, inputs_NTI.shape[2], len(inputs_NTI))
    for group in range(n_row_groups):
        statistics.update(inputs_NTI, group)
    return statistics


def data(width=1, n_tokens=400, seed=0):
    """Weights [O, C, W] and inputs [1, T, I] that depend on each other and have a mean."""
    generator = torch.Generator().manual_seed(seed)
    n_in = N_ITEMS * width
    mixed_II = torch.randn(n_in, n_in, generator=generator)
    inputs_TI = torch.randn(n_tokens, n_in, generator=generator) @ mixed_II + torch.randn(n_in, generator=generator)
    return torch.randn(N_OUT, N_ITEMS, width, generator=generator), inputs_TI[None]


def output_error(weight_OI, fitted_OI, inputs_TI):
    return ((weight_OI - fitted_OI).double() @ inputs_TI.double().T).square().sum().item()


def solved(weight_OI, inputs_TI, kept_OI):
    """Least squares of each row on the columns that it keeps."""
    fitted_OI = torch.zeros_like(weight_OI)
    for o, kept_I in enumerate(kept_OI):
        target_T1 = inputs_TI.double() @ weight_OI[o, :, None].double()
        fitted_OI[o, kept_I] = torch.linalg.lstsq(inputs_TI[:, kept_I].double(), target_T1).solution[:, 0].float()
    return fitted_OI


@pytest.mark.parametrize("method", PRUNERS)
@pytest.mark.parametrize("recovery", [LeastSquares(), BiasCompensation()])
def test_around_every_pruner_the_same_items_go_from_a_real_model(method, recovery, load_tiny):
    plain, pruner = method(), recovery.around(method())
    loaded = load_tiny("llama").for_items(plain.items())
    before, after = (statistics_of(loaded, WINDOWS, each, 2) for each in (plain, pruner))
    for unit in loaded.units[:3]:
        weight = loaded.model.get_submodule(unit.matrix).weight
        weight = weight if unit.item is Item.WEIGHT else weight.reshape(-1, unit.n_items, unit.item_width)
        n_pruned = unit.n_items // 2
        expected = plain.prune(weight, before[unit.name], n_pruned)
        pruned = pruner.prune(weight, after[unit.name], n_pruned)
        assert torch.equal(pruned.kept, expected.kept)
        if recovery.adds_biases:
            assert pruned.bias_O.shape == weight.shape[:1]
        else:
            assert (pruned.weight_OI.shape, pruned.weight_OI.dtype) == (weight.flatten(1).shape, weight.dtype)
            if unit.item is Item.WEIGHT:
                assert int((pruned.weight_OI == 0).sum()) == n_pruned
        if plain.items() != {Item.WEIGHT}:
            assert torch.equal(pruner.ranks(weight, after[unit.name]) >= n_pruned, pruned.kept)


@pytest.mark.parametrize("width", [1, 3])
def test_a_refit_is_the_least_squares_of_the_kept_columns(width):
    weight_OCW, inputs_NTI = data(width)
    weight_OI, inputs_TI = weight_OCW.flatten(1), inputs_NTI[0]
    pruner = LeastSquares(percent_damping=0).around(WandaSP())
    pruned = pruner.prune(weight_OCW, seen(pruner, inputs_NTI), 3)
    kept_I = pruned.kept.repeat_interleave(width)
    expected_OI = solved(weight_OI, inputs_TI, kept_I.expand_as(weight_OI))
    torch.testing.assert_close(pruned.weight_OI, expected_OI, rtol=1e-3, atol=1e-3)
    assert output_error(weight_OI, pruned.weight_OI, inputs_TI) < 0.5 * output_error(weight_OI, weight_OI * kept_I, inputs_TI)


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT()])
def test_single_weights_come_near_to_the_least_squares_of_what_each_row_keeps(pruner):
    weight_OCW, inputs_NTI = data(3)
    weight_OI, inputs_TI = weight_OCW.flatten(1), inputs_NTI[0]
    left = pruner.prune(weight_OI, seen(pruner, inputs_NTI), 70)
    left_OI = weight_OI * left.kept if left.weight_OI is None else left.weight_OI
    repaired = LeastSquares(percent_damping=0, n_steps=60).around(pruner)
    pruned = repaired.prune(weight_OI, seen(repaired, inputs_NTI), 70)
    assert torch.equal(pruned.kept, left.kept)
    errors = [
        output_error(weight_OI, each_OI, inputs_TI)
        for each_OI in (solved(weight_OI, inputs_TI, left.kept), pruned.weight_OI, left_OI)
    ]
    assert errors[0] <= errors[1] < 1.01 * errors[0] < 0.95 * errors[2]


def test_experts_are_fitted_each_on_its_own_inputs_and_unseen_ones_stay():
    weight_OI, inputs_NTI = torch.cat([data()[0][:, :, 0], data(seed=1)[0][:, :, 0]]), data()[1]
    pruner = LeastSquares().around(Wanda())
    statistics = pruner.statistics(2, N_ITEMS, 1)
    statistics.update(inputs_NTI, 0)
    pruned = pruner.prune(weight_OI, statistics, 40)
    alone = pruner.prune(weight_OI[:N_OUT], seen(pruner, inputs_NTI), int((~pruned.kept[:N_OUT]).sum()))
    torch.testing.assert_close(pruned.weight_OI[:N_OUT], alone.weight_OI)
    assert torch.equal(pruned.weight_OI[N_OUT:], weight_OI[N_OUT:] * pruned.kept[N_OUT:])


def test_the_mean_output_stays_with_a_bias():
    weight_OCW, inputs_NTI = data(3)
    weight_OI = weight_OCW.flatten(1)
    for pruner, weight, n_pruned in ((FLAP(), weight_OCW, 3), (FLAP(), weight_OCW, 8), (SparseGPT(), weight_OI, 70)):
        repaired = BiasCompensation().around(pruner)
        pruned = repaired.prune(weight, seen(repaired, inputs_NTI), n_pruned)
        left_OI = weight_OI * (pruned.kept if weight.ndim == 2 else pruned.kept.repeat_interleave(3))
        left_OI = left_OI if pruned.weight_OI is None else pruned.weight_OI
        mean_I = inputs_NTI[0].mean(dim=0)
        torch.testing.assert_close(left_OI @ mean_I + pruned.bias_O, weight_OI @ mean_I, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", ["heads and channels", "weights"])
def test_a_model_with_biases_is_pruned_restored_saved_and_reloaded(shape, load_tiny, tmp_path):
    pruner = BiasCompensation().around(FLAP() if shape == "heads and channels" else Wanda())
    loaded = with_biases_in_place(load_tiny("llama").for_items(pruner.items()))
    dense = loaded.model(WINDOWS[:2]).logits
    store = MaskLevels(loaded, LevelGrid.with_single_level(loaded.units, 0.5), pruner)
    store.take(loaded.units, statistics_of(loaded, WINDOWS, pruner, 2))
    allocation = {unit.name: unit.n_items // 2 for unit in loaded.units}
    if shape == "heads and channels":
        allocation[loaded.units[0].name] = loaded.units[0].n_items
    assert prune_in_place(loaded, WINDOWS, pruner, allocation, 2) == allocation
    assert all(loaded.model.get_parameter(name).any() for name in loaded.biases)
    pruned = loaded.model(WINDOWS[:2]).logits
    save_checkpoint(PrunedCheckpoint(loaded, tmp_path / "cut", by_block=False), tmp_path / "cut")
    register_per_layer(tmp_path / "cut")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "cut").eval()
    torch.testing.assert_close(small(WINDOWS[:2]).logits, pruned, atol=1e-5, rtol=1e-4)
    own = json.loads((tmp_path / "cut/config.json").read_text())["per_layer_config"]["01"]
    assert own["biased"] == [unit.matrix.removeprefix("model.layers.1.") for unit in loaded.units if unit.block == 1]
    store.restore()
    assert torch.equal(loaded.model(WINDOWS[:2]).logits, dense)

    again = load_model(ModelConfig(str(tmp_path / "cut"), device="cpu")).for_items(pruner.items())
    assert with_biases_in_place(again).new_biases == ()
    save_checkpoint(PrunedCheckpoint(again, tmp_path / "again", by_block=False), tmp_path / "again")
    twice = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(twice(WINDOWS[:2]).logits, pruned, atol=1e-5, rtol=1e-4)


def test_a_bias_of_the_family_outlives_its_sublayer(load_tiny, tmp_path):
    loaded = load_tiny("llama", attention_bias=True, mlp_bias=True).for_items(WandaSP().items())
    for name, parameter in loaded.model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    allocation = {unit.name: unit.n_items * (unit.block == 0) for unit in loaded.units}
    prune_in_place(replace(loaded, source=None), WINDOWS, WandaSP(), allocation, 2)
    whole = replace(loaded, source=None)
    save_checkpoint(PrunedCheckpoint(whole, tmp_path / "cut", by_block=False), tmp_path / "cut")
    register_per_layer(tmp_path / "cut")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "cut").eval()
    torch.testing.assert_close(small(WINDOWS[:2]).logits, loaded.model(WINDOWS[:2]).logits, atol=1e-5, rtol=1e-4)


def test_what_cannot_have_biases_is_refused(load_tiny):
    with pytest.raises(ModelError, match=r"the fused experts .* cannot have biases; choose recovery=least_squares"):
        with_biases_in_place(load_tiny("mixtral"))
    with pytest.raises(ModelError, match=r"would give model.* to a model of the type olmo, whose checkpoints cannot hold it"):
        with_biases_in_place(load_tiny("olmo"))
    statistics = BiasCompensation().statistics(2, 3, 1)
    with pytest.raises(PruningError, match="fused experts have no biases"):
        BiasCompensation().repaired(torch.ones(4, 3), torch.ones(4, 3, dtype=torch.bool), None, statistics)


@pytest.mark.parametrize("recovery", [LeastSquares(), BiasCompensation()])
def test_inputs_that_are_not_finite_are_told(recovery):
    weight_OCW, inputs_NTI = data()
    pruner = recovery.around(CheapOrder())
    statistics = pruner.statistics(1, N_ITEMS, 1)
    statistics.update(inputs_NTI.masked_fill(inputs_NTI > 2, torch.inf))
    with pytest.raises(PruningError, match="not finite"):
        pruner.prune(weight_OCW, statistics, 3)


class CheapOrder(WandaSP):
    """The items in their order."""

    def scores(self, weight_OCW, statistics):
        return torch.arange(float(weight_OCW.shape[1]))


def test_a_search_compares_what_is_fitted_and_masks_without_biases():
    assert LevelKind.of(LeastSquares().around(Wanda())) is LevelKind.BUILT
    assert LevelKind.of(BiasCompensation().around(FLAP())) is LevelKind.MASKS
    assert LevelKind.of(BiasCompensation().around(OBS())) is LevelKind.BUILT


def test_none_leaves_the_pruner_as_it_is_and_the_others_are_told_apart():
    pruner = Wanda()
    assert NoRecovery().around(pruner) is pruner
    assert repr(LeastSquares().around(pruner)) != repr(LeastSquares().around(SparseGPT()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeastSquares(percent_damping=-1.0), r"recovery.percent_damping must lie in \[0, 1\], got -1.0"),
        (lambda: LeastSquares(n_steps=0), "recovery.n_steps must be 1 or more, got 0"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
