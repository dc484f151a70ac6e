"""Swap gradients against central differences of the plain score, in fp64.

Shape suffixes: N windows, T tokens, V vocabulary, O out, I in.
"""

import json

import pytest
import torch
from calibrated import fill, mask_levels

from selfprune.allocations.level_grid import LevelGrid
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.levels.built_levels import BuiltLevels, open_statistics
from selfprune.levels.levels_config import LevelsConfig
from selfprune.models.loading import LoadedModel
from selfprune.models.units import find_blocks, list_units, weight_view
from selfprune.proposers.move_values import Look
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.search.bench import Bench
from selfprune.search.gradient_values import FORWARD_PASSES, GradientValues
from selfprune.search.scoring import Scorer
from selfprune.storage.journal import Journal

N_WINDOWS, N_TOKENS = 7, 10
WINDOWS_NT = torch.randint(0, 300, (N_WINDOWS, N_TOKENS), generator=torch.Generator().manual_seed(0))


def make_masks(loaded, grid):
    return mask_levels(loaded, grid, WINDOWS_NT, Magnitude(), 4)


def make_bench(model, make_store=make_masks):
    """A level store and an evaluator, whose passes hold two windows."""
    # At random weights the blocks add little to the hidden states, and logits are nearly flat.
    for unit in list_units(model):
        weight_view(model, unit).mul_(8)
    model.get_output_embeddings().weight.mul_(10)
    loaded = LoadedModel(model, None, list_units(model), find_blocks(model)[1], torch.device("cpu"))
    store = make_store(loaded, LevelGrid.with_constant_step(loaded.units, 0.05))
    return store, WindowEvaluator({"score": KLDivergence()}, model, loaded.blocks, WINDOWS_NT, 2)


@pytest.fixture(scope="module")
def bench(make_tiny_model):
    return make_bench(make_tiny_model("llama").double())


@pytest.fixture
def make_oracle(bench, tmp_path):
    def make(name="evaluations.jsonl"):
        return GradientValues(Scorer(Bench(*bench), Journal(tmp_path / name)))

    return make


def at(grid, share):
    """A mixed allocation around a share of the levels."""
    return {
        unit.name: grid.levels[unit.name].items[1]
        * min(grid.levels[unit.name].n_steps, round(share * grid.levels[unit.name].n_steps) + i % 3)
        for i, unit in enumerate(grid.units)
    }


def plain_score(model, dense_NTV, windows_NT):
    """Mean KL(dense‖pruned) per token in fp64."""
    p_NTV, q_NTV = (logits_NTV.log_softmax(-1) for logits_NTV in (dense_NTV, model(input_ids=windows_NT).logits))
    return float((p_NTV.exp() * (p_NTV - q_NTV)).sum(-1).mean())


def slopes(store, allocation, denser, windows_NT):
    """Unit name -> derivative of the score per level along the weights that return, by central differences."""
    model, found, width = store.loaded.model, {}, 1e-2
    with torch.no_grad():
        store.restore()
        dense_NTV = model(input_ids=windows_NT).logits
        store.load(allocation)
        for unit in store.grid.units:
            if allocation[unit.name] == denser[unit.name]:
                continue
            weight_OI = weight_view(model, unit)
            pruned_OI = weight_OI.clone()
            change_OI = store.weight_at(unit, denser[unit.name]) - store.weight_at(unit, allocation[unit.name])
            scores = []
            for sign in (1, -1):
                weight_OI.copy_(pruned_OI + sign * width * change_OI)
                scores.append(plain_score(model, dense_NTV, windows_NT))
            weight_OI.copy_(pruned_OI)
            n_levels = (allocation[unit.name] - denser[unit.name]) // store.grid.levels[unit.name].items[1]
            found[unit.name] = (scores[0] - scores[1]) / (2 * width) / n_levels
        store.restore()
    return found


def moved(grid, allocation, n_levels):
    """Every unit so many levels up, as far as there are any."""
    return {
        unit.name: min(max(allocation[unit.name] + n_levels * grid.levels[unit.name].items[1], 0), grid.levels[unit.name].highest)
        for unit in grid.units
    }


def assert_are_falls(values, expected):
    assert values.keys() == expected.keys()
    scale = max(map(abs, expected.values()))
    assert scale > 1e-4
    for name, slope in expected.items():
        assert values[name] == pytest.approx(-slope, rel=1e-3, abs=1e-4 * scale), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_values_equal_central_differences_of_the_score(family, make_tiny_model, tmp_path):
    store, evaluator = make_bench(make_tiny_model(family, tie_word_embeddings=False).double())
    oracle, grid = GradientValues(Scorer(Bench(store, evaluator), Journal(tmp_path / "evaluations.jsonl"))), store.grid
    allocation = at(grid, 0.5)
    values = oracle(allocation, bracket=0.0, start=0, n_windows=3)
    assert_are_falls(values.restoring, slopes(store, allocation, moved(grid, allocation, -1), WINDOWS_NT[:3]))
    sparser = moved(grid, allocation, 1)
    assert_are_falls(values.removing, slopes(store, sparser, allocation, WINDOWS_NT[:3]))
    assert set(values.restoring) == set(values.removing) == set(allocation)


def test_values_of_built_levels_count_the_weights_that_stay(make_tiny_model, tmp_path):
    def make_built(loaded, grid):
        kept = open_statistics(loaded, grid, SparseGPT(), WINDOWS_NT, 4, LevelsConfig(), tmp_path)
        return fill(BuiltLevels(loaded, grid, SparseGPT(), kept, memory_bytes=10**9), WINDOWS_NT, SparseGPT(), 4)

    store, evaluator = make_bench(make_tiny_model("llama").double(), make_built)
    oracle, grid = GradientValues(Scorer(Bench(store, evaluator), Journal(tmp_path / "evaluations.jsonl"))), store.grid
    allocation = at(grid, 0.5)
    denser, sparser = moved(grid, allocation, -1), moved(grid, allocation, 1)
    values = oracle(allocation, bracket=0.0, start=0, n_windows=3)
    assert_are_falls(values.restoring, slopes(store, allocation, denser, WINDOWS_NT[:3]))
    assert_are_falls(values.removing, slopes(store, sparser, allocation, WINDOWS_NT[:3]))


def test_a_bracket_of_several_levels_is_cut_at_the_ends_of_the_grid_and_counted_per_level(bench, make_oracle):
    store, grid = bench[0], bench[0].grid
    # the step is a twentieth of the smallest units and a fortieth or sixtieth of the others
    units = {unit.name: round(0.1 * unit.n_items / grid.levels[unit.name].items[1]) for unit in grid.units}
    assert {2, 4} <= set(units.values())
    allocation = dict.fromkeys(units, 0)
    for i, unit in enumerate(grid.units):
        allocation[unit.name] = (
            0,
            grid.levels[unit.name].items[1],
            grid.levels[unit.name].highest,
            grid.levels[unit.name].highest // 2,
        )[i % 4]
        allocation[unit.name] -= allocation[unit.name] % grid.levels[unit.name].items[1]
    denser = {name: max(0, level - units[name] * grid.levels[name].items[1]) for name, level in allocation.items()}
    sparser = {
        u.name: min(grid.levels[u.name].highest, allocation[u.name] + units[u.name] * grid.levels[u.name].items[1])
        for u in grid.units
    }
    values = make_oracle()(allocation, bracket=0.1, start=0, n_windows=2)
    assert_are_falls(values.restoring, slopes(store, allocation, denser, WINDOWS_NT[:2]))
    assert_are_falls(values.removing, slopes(store, sparser, allocation, WINDOWS_NT[:2]))
    empty = {name for name, level in allocation.items() if level == 0}
    full = {unit.name for unit in grid.units if allocation[unit.name] == grid.levels[unit.name].highest}
    assert len(empty) >= 3
    assert len(full) >= 3
    assert set(values.restoring) == set(allocation) - empty
    assert set(values.removing) == set(allocation) - full


@pytest.mark.parametrize(
    ("start", "n_windows", "windows"),
    [(0, 3, [0, 1, 2]), (4, 1, [4]), (5, 4, [5, 6, 0, 1]), (7, 2, [0, 1]), (3, 99, [3, 4, 5, 6, 0, 1, 2])],
)
def test_the_very_windows_asked_for_are_taken_and_the_first_follow_the_last(
    start, n_windows, windows, bench, make_oracle, tmp_path
):
    oracle, allocation = make_oracle(), at(bench[0].grid, 0.5)
    assert oracle.n_windows == N_WINDOWS
    values = oracle(allocation, 0.0, start, n_windows)
    (record,) = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert record["windows"] == windows
    assert values.n_tokens == 2 * FORWARD_PASSES * len(windows) * N_TOKENS
    oracle.max_tokens = values.n_tokens
    assert oracle.affords(n_windows)
    oracle.max_tokens -= 1
    assert not oracle.affords(n_windows)


def test_values_of_several_windows_are_the_means_over_them(bench, make_oracle):
    oracle, allocation = make_oracle(), at(bench[0].grid, 0.5)
    one, other = (oracle(allocation, 0.0, start, n) for start, n in ((0, 2), (2, 1)))
    both = oracle(allocation, 0.0, 0, 3)
    for of in ("restoring", "removing"):
        for name, value in getattr(both, of).items():
            assert value == pytest.approx((2 * getattr(one, of)[name] + getattr(other, of)[name]) / 3, rel=1e-4, abs=1e-9)


def test_values_that_were_recorded_are_read_back_without_running_the_model(bench, make_oracle, tmp_path):
    allocations = [at(bench[0].grid, share) for share in (0.3, 0.5)]
    values = [make_oracle(f"{i}.jsonl")(allocation, 0.05, i, 2) for i, allocation in enumerate(allocations)]
    whole = make_oracle("whole.jsonl")
    assert [whole(allocation, 0.05, i, 2) for i, allocation in enumerate(allocations)] == values

    # Without weights nothing could be measured.
    class Store:
        grid, allocation = bench[0].grid, dict.fromkeys(bench[0].allocation, 0)

    class Evaluator:
        n_windows, n_tokens_per_window = N_WINDOWS, N_TOKENS

    recalled = GradientValues(Scorer(Bench(Store(), Evaluator()), Journal(tmp_path / "whole.jsonl")))
    assert [recalled(allocation, 0.05, i, 2) for i, allocation in enumerate(allocations)] == values


def test_scores_after_a_look_are_those_of_the_allocations_scored(bench, make_oracle):
    oracle, grid = make_oracle(), bench[0].grid
    scorer, allocations = oracle.scorer, [at(bench[0].grid, share) for share in (0.3, 0.5)]
    before = [scorer.bench.scores(allocation, [0, 1, 4]) for allocation in allocations]
    oracle(moved(grid, allocations[0], 2), 0.1, 0, 3)
    assert [scorer.bench.scores(allocation, [0, 1, 4]) for allocation in allocations] == before
    assert not any(parameter.requires_grad for parameter in bench[0].loaded.model.parameters())


def test_a_look_is_the_score_of_the_first_windows_on_the_budget_or_off_it_paid_once_and_read_back(bench, make_oracle, tmp_path):
    oracle, allocation = make_oracle(), at(bench[0].grid, 0.3)
    oracle.max_tokens = 3 * N_TOKENS
    look = oracle.look(allocation, 2)
    expected = oracle.scorer.bench.scores(allocation, [0, 1])
    assert look == Look(sum(expected) / 2, 2 * N_TOKENS)
    assert oracle.max_tokens == N_TOKENS
    assert oracle.look(allocation, 2) is None
    assert make_oracle("all.jsonl").look(allocation, 99).n_tokens == N_WINDOWS * N_TOKENS
    recorded = (tmp_path / "evaluations.jsonl").read_text()
    assert make_oracle().look(allocation, 2) == look
    assert (tmp_path / "evaluations.jsonl").read_text() == recorded
