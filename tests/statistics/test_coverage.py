"""Weights whose inputs calibration never saw, or hardly saw: what becomes of them, and what a run says about it."""

import json
from copy import deepcopy
from functools import cache

import pytest
import torch
from calibrated import fill, mask_levels
from omegaconf import OmegaConf

from selfprune.allocations.budget import Budget
from selfprune.allocations.level_grid import LevelGrid
from selfprune.configs.config import PruneConfig
from selfprune.data.data_config import DataConfig
from selfprune.levels.built_levels import BuiltLevels, open_statistics
from selfprune.levels.levels_config import LevelKind, LevelsConfig
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig, Placement
from selfprune.models.units import weight_view
from selfprune.pruners.weight_pruner import Scope
from selfprune.pruners.weights.admm import ADMM
from selfprune.pruners.weights.alps import ALPS
from selfprune.pruners.weights.dsnot import DSnoT
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.pruners.weights.obd import OBD
from selfprune.pruners.weights.ria import RIA
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.pruners.weights.taylor import Taylor
from selfprune.pruners.weights.wanda import Wanda
from selfprune.pruning.sequential import prune_in_place
from selfprune.recoveries.none import NoRecovery
from selfprune.runs.prune_once import prune_once
from selfprune.statistics.coverage import Coverage

WINDOWS_NT = torch.randint(300, (6, 24), generator=torch.Generator().manual_seed(0))
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
DOWN = "model.layers.1.mlp.experts.down_proj"
DEEPSEEK = {
    "moe_intermediate_size": 24, "num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_shared_experts": 1, "num_key_value_heads": 4,
}  # fmt: skip
PRUNERS = [Wanda(), Wanda(scope=Scope.MATRIX), RIA(), DSnoT(), Taylor(), OBD(), SparseGPT(), ADMM(), ALPS(max_iterations=9)]


@pytest.fixture(scope="module")
def deepseek(make_tiny_model, tiny_tokenizer, tmp_path_factory):
    """A DeepSeek-V3 whose router never chooses its first expert."""
    folder = tmp_path_factory.mktemp("deepseek")
    model = make_tiny_model("deepseek_v3", **DEEPSEEK)
    model.model.layers[1].mlp.gate.e_score_correction_bias[0] = -1e4
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mamba(make_tiny_model, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mamba")
    make_tiny_model("mamba", state_size=8).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@cache
def once(folder):
    return load_model(ModelConfig(str(folder), device="cpu"))


def load(folder):
    return deepcopy(once(folder))


def halves(loaded):
    return {unit.name: unit.n_items // 2 for unit in loaded.units}


def n_of_first_columns(weight_OI):
    """How many of the zeros lie in the first half of the columns."""
    return int((weight_OI[:, : weight_OI.shape[1] // 2] == 0).sum())


def check_smallest_went(dense_OI, pruned_OI, by_row):
    """Checks that half of the weights went, the smallest, and that the others are as they were."""
    kept_OI = pruned_OI != 0
    assert int(kept_OI.sum()) == dense_OI.numel() // 2
    assert torch.equal(pruned_OI[kept_OI], dense_OI[kept_OI])
    expected_OI = Magnitude(scope=Scope.ROW if by_row else Scope.MATRIX)
    expected_OI = expected_OI.prune(dense_OI, expected_OI.statistics(1, dense_OI.shape[1], 1), dense_OI.numel() // 2).kept
    assert torch.equal(kept_OI, expected_OI)
    assert n_of_first_columns(pruned_OI) < 0.7 * dense_OI.numel() / 2


def is_by_row(pruner):
    return getattr(pruner, "scope", Scope.ROW if isinstance(pruner, DSnoT) else Scope.MATRIX) is Scope.ROW


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: type(pruner).__name__)
def test_an_expert_that_no_token_reached_loses_its_smallest_weights(pruner, deepseek):
    loaded = load(deepseek)
    units = {unit.name: unit for unit in loaded.units}
    dense = {name: weight_view(loaded.model, units[name]).clone() for name in (GATE_UP, DOWN)}
    coverage = Coverage(loaded)
    allocation = halves(loaded)
    assert prune_in_place(loaded, WINDOWS_NT, pruner, allocation, batch_size=4, coverage=coverage) == allocation
    for name, dense_OI in dense.items():
        n_rows = len(dense_OI) // 4
        pruned_OI = weight_view(loaded.model, units[name])
        if isinstance(pruner, Wanda) and pruner.scope is Scope.MATRIX:
            # the experts compete, and nobody knows what the unseen one is worth: as its weights are like theirs, so is its share
            n_gone = int((pruned_OI[:n_rows] == 0).sum())
            assert n_gone == pytest.approx(n_rows * dense_OI.shape[1] / 2, rel=0.15)
        else:
            check_smallest_went(dense_OI[:n_rows], pruned_OI[:n_rows], is_by_row(pruner))
        assert [n == 0 for n in coverage.n_tokens_of[name]] == [True, False, False, False]
        if not pruner.needs_gradients:
            assert sum(coverage.n_tokens_of[name]) == 2 * WINDOWS_NT.numel()


@pytest.mark.parametrize("pruner", [Wanda(), RIA(), SparseGPT(), ADMM()], ids=lambda pruner: type(pruner).__name__)
def test_a_search_compares_such_experts_by_their_smallest_weights_too(pruner, deepseek, tmp_path):
    loaded = load(deepseek)
    grid = LevelGrid.with_constant_step(loaded.units, 0.05, 1.0, {})
    unit = next(unit for unit in loaded.units if unit.name == GATE_UP)
    dense_OI = weight_view(loaded.model, unit)[:48].clone()
    level = grid.levels[GATE_UP].n_steps // 2 * grid.levels[GATE_UP].items[1]
    masks = mask_levels(loaded, grid, WINDOWS_NT, pruner, 4)
    kept = open_statistics(loaded, grid, pruner, WINDOWS_NT, 4, LevelsConfig(LevelKind.BUILT), tmp_path)
    for store in (masks, fill(BuiltLevels(loaded, grid, pruner, kept, memory_bytes=10**8), WINDOWS_NT, pruner, 4)):
        pruned_OI = store.weight_at(unit, level)[:48]
        n_gone = int((pruned_OI == 0).sum())
        # over the whole matrix masks compete by scores, which are squares for SparseGPT and magnitudes for the unseen expert
        assert n_gone == pytest.approx(level / 4, rel=0.4)
        smallest = dense_OI.abs().flatten().sort().values
        if not is_by_row(pruner):
            assert torch.equal(pruned_OI == 0, dense_OI.abs() <= smallest[n_gone - 1])
        assert n_of_first_columns(pruned_OI) < 0.7 * n_gone


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT(), DSnoT()], ids=lambda pruner: type(pruner).__name__)
def test_a_weight_that_a_kernel_reads_without_its_layer_loses_its_smallest(pruner, mamba):
    loaded = load(mamba)
    unit = next(unit for unit in loaded.units if unit.kind == "mixer.dt_proj")
    dense_OI, coverage = weight_view(loaded.model, unit).clone(), Coverage(loaded)
    prune_in_place(loaded, WINDOWS_NT, pruner, halves(loaded), batch_size=4, coverage=coverage)
    check_smallest_went(dense_OI, weight_view(loaded.model, unit), is_by_row(pruner))
    assert [name for name, counts in coverage.n_tokens_of.items() if counts == [0]] == [
        f"backbone.layers.{block}.mixer.dt_proj" for block in range(2)
    ]


def test_a_gradient_sees_what_a_kernel_reads(mamba):
    loaded = load(mamba)
    coverage = Coverage(loaded)
    prune_in_place(loaded, WINDOWS_NT[:2], Taylor(), halves(loaded), batch_size=4, coverage=coverage)
    assert all(counts == [None] for counts in coverage.n_tokens_of.values())
    assert coverage.as_dict() == {"n_tokens": None, "fewer_reached": {}}


def of_coverage(record):
    """The warnings but for the one that a random model is no better than chance."""
    return [warning for warning in record["warnings"] if "no better than chance" not in warning]


@pytest.mark.parametrize("placement", [Placement.WHOLE, Placement.STREAM])
def test_prune_names_what_no_token_reached_and_what_few_did(placement, deepseek, tmp_path, capsys):
    record = pruned(deepseek, Wanda(), tmp_path, model=ModelConfig(str(deepseek), device="cpu", placement=placement))
    unseen, few = of_coverage(record)
    assert unseen.startswith(f"in calibration no token reached 2 of 24 weight matrices: {GATE_UP}[0], {DOWN}[0]; of these the ")
    counts = record["calibration"]["fewer_reached"]
    assert record["calibration"]["n_tokens"] == 3 * 16
    assert counts.keys() == {GATE_UP, DOWN}
    assert counts[GATE_UP] == counts[DOWN]
    assert (counts[GATE_UP][0], sum(counts[GATE_UP])) == (0, 2 * 3 * 16)
    n_few = sum(0 < n < n_in for name, n_in in ((GATE_UP, 32), (DOWN, 24)) for n in counts[name])
    assert f"experts saw fewer tokens than they have inputs, in {n_few} of 24 weight matrices: " in few
    assert f"[{min(range(1, 4), key=counts[GATE_UP].__getitem__)}] ({min(counts[GATE_UP][1:])} tokens, 32 inputs)" in few
    assert capsys.readouterr().err.count("warning: in calibration") == 2


@pytest.mark.parametrize("pruner", [Magnitude(), Wanda()], ids=["magnitude", "wanda"])
def test_nothing_is_said_where_enough_was_seen_or_nothing_is_looked_at(pruner, tiny_model_folder, tmp_path):
    n_windows = 1 if isinstance(pruner, Magnitude) else 4
    record = pruned(tiny_model_folder("llama"), pruner, tmp_path, n_windows)
    assert of_coverage(record) == []
    assert record["calibration"] == {"n_tokens": n_windows * 16, "fewer_reached": {}}


def test_what_was_told_already_is_not_told_again(deepseek):
    loaded, told = load(deepseek), []
    first, second = Coverage(loaded), Coverage(loaded)
    for coverage, n_tokens in ((first, 40), (second, 40)):
        for unit in loaded.units:
            for group in range(len(coverage.n_tokens_of[unit.name])):
                coverage.add(unit, torch.zeros(n_tokens, 1), group)
    first.n_tokens_of[GATE_UP] = [0, 9, 40, 40]
    second.n_tokens_of[GATE_UP] = [0, 8, 7, 40]
    second.n_tokens_of[DOWN] = [40, 40, 40, 0]
    second.warn(told.append, "the final pruning of the winner", first)
    assert "no token reached 1 of 24 weight matrices: model.layers.1.mlp.experts.down_proj[3]; " in told[0]
    assert "in 1 of 24 weight matrices: model.layers.1.mlp.experts.gate_up_proj[2] (7 tokens, 32 inputs); " in told[1]


def test_many_names_are_counted(deepseek):
    loaded, told = load(deepseek), []
    coverage = Coverage(loaded)
    coverage.warn(told.append, "calibration")
    (paragraph,) = told
    assert "no token reached 24 of 24 weight matrices: " in paragraph
    assert "self_attn.kv_b_proj and 20 more; of these" in paragraph


def pruned(folder, pruner, tmp_path, n_windows=3, model=None):
    config = PruneConfig(
        model or ModelConfig(str(folder), device="cpu"),
        DataConfig(n_tokens_per_window=16, n_calibration=n_windows),
        pruner,
        NoRecovery(),
        Budget(0.5),
        output=str(tmp_path / "out"),
    )
    prune_once(config, OmegaConf.create({"pruner": type(pruner).__name__, "output": ""}))
    return json.loads((tmp_path / "out" / "selfprune.json").read_text())
