import json
import math

import pytest
import torch

from selfprune.allocation import LevelGrid, Unit
from selfprune.archive import to_record
from selfprune.calibration import calibrate
from selfprune.candidate import Proposal, State, best
from selfprune.errors import ConfigError
from selfprune.evaluators.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.journal import Journal
from selfprune.level_store import LevelStore, rank_units
from selfprune.models import LoadedModel
from selfprune.pruners.magnitude import Magnitude
from selfprune.racing import Ladder, Racer, block_versions, paired_z
from selfprune.units import find_blocks, list_units

N_WINDOWS, N_TOKENS = 8, 12
LADDER = Ladder([2, 4, 8], [3, 2], z_worse=math.inf)


@pytest.fixture(scope="module")
def bench(make_tiny_model):
    """A real level store and evaluator, each made once; loading an allocation undoes the one before."""
    model = make_tiny_model("llama")
    loaded = LoadedModel(model, None, list_units(model), find_blocks(model)[1], torch.device("cpu"))
    windows_NT = torch.randint(0, 300, (N_WINDOWS, N_TOKENS), generator=torch.Generator().manual_seed(0))
    grid = LevelGrid.with_constant_step(loaded.units, 0.05)
    store = LevelStore(loaded, grid, rank_units(loaded, grid.units, Magnitude(), calibrate(loaded, windows_NT, Magnitude(), 4)))
    # Random logits are nearly flat; sharper ones make the candidates differ.
    model.lm_head.weight.mul_(50)
    return store, WindowEvaluator({"score": KLDivergence()}, model, loaded.blocks, windows_NT, 2, [1, 2, 4, 8], 10**6)


@pytest.fixture
def make_racer(bench, tmp_path):
    def make(ladder=LADDER, name="evaluations.jsonl"):
        return Racer(*bench, ladder, Journal(tmp_path / name))

    return make


@pytest.fixture
def proposals(bench):
    """From a little pruning to much, in a mixed order."""
    grid = bench[0].grid
    sparsities = [0.5, 0.1, 0.7, 0.3, 0.6, 0.2]
    return [Proposal(grid_allocation(grid, s), "test") for s in sparsities]


def grid_allocation(grid, sparsity):
    return {unit.name: grid.step[unit.name] * round(sparsity * grid.n_levels[unit.name]) for unit in grid.units}


def records(racer):
    return [json.loads(line) for line in racer.journal.path.read_text().splitlines()]


def test_the_field_narrows_rung_by_rung_on_the_same_windows(make_racer, proposals):
    candidates = make_racer().race("main", 10, proposals)
    assert [c.id for c in candidates] == list(range(10, 16))
    assert [c.proposal for c in candidates] == proposals
    seen = [c.n_windows for c in candidates]
    assert sorted(seen) == [2, 2, 2, 4, 8, 8]
    assert [c.n_tokens for c in candidates] == [n * N_TOKENS for n in seen]
    assert all((c.state is State.COMPLETE) == (c.n_windows == 8) for c in candidates)
    # Less pruning is better here, so the two with the least are left.
    assert [c.id for c in best(candidates, 6)] == [11, 15]


def test_a_survivor_is_scored_only_on_windows_that_it_has_not_seen(make_racer, proposals):
    racer = make_racer()
    candidates = racer.race("main", 0, proposals)
    for candidate in candidates:
        mine = [r for r in records(racer) if r["candidate"] == candidate.id]
        assert [(r["start"], r["stop"]) for r in mine] == [(0, 2), (2, 4), (4, 8)][: len(mine)]
        scores = [score for r in mine for score in r["window_scores"]]
        assert candidate.score == math.fsum(scores) / len(scores)
        assert len(scores) == candidate.n_windows


def test_scores_equal_those_of_the_model_on_its_own(make_racer, proposals, bench):
    store, evaluator = bench
    candidates = make_racer().race("main", 0, proposals, keep_all=True)
    for candidate in candidates:
        store.restore()
        evaluator.forward.clear()
        store.load(candidate.allocation)
        alone = evaluator.evaluate([f"only {candidate.id}"] * 2, 0, N_WINDOWS)
        assert candidate.score == alone.score


def test_whoever_is_stopped_is_told_the_rank(make_racer, proposals):
    candidates = make_racer().race("main", 0, proposals)
    reasons = {c.proposal.allocation["model.layers.0.mlp.up_proj"]: c.reason for c in candidates if c.state is State.STOPPED}
    ranked = [reasons[level] for level in sorted(reasons)]
    assert ranked == ["rank 3 of 3 after 4 windows", *(f"rank {rank} of 6 after 2 windows" for rank in (4, 5, 6))]


def test_whoever_is_clearly_worse_is_stopped_whatever_the_rank(make_racer, proposals):
    kept = make_racer(Ladder([4, 8], [6], z_worse=math.inf), "kept.jsonl").race("main", 0, proposals)
    assert {c.state for c in kept} == {State.COMPLETE}
    candidates = make_racer(Ladder([4, 8], [6], z_worse=0.0)).race("main", 0, proposals)
    assert [c.id for c in best(candidates, 6)] == [1]
    for candidate in candidates:
        if candidate.id != 1:
            assert candidate.state is State.STOPPED
            assert candidate.reason.startswith("worse than the best by ")
            assert candidate.reason.endswith(" standard errors after 4 windows")


def test_yardsticks_are_all_scored_on_all_windows(make_racer, proposals):
    candidates = make_racer(Ladder([2, 4, 8], [1, 1], z_worse=0.0)).race("main", 0, proposals, keep_all=True)
    assert {(c.state, c.n_windows, c.reason) for c in candidates} == {(State.COMPLETE, 8, "")}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_fails_and_is_never_best(value, make_racer, proposals, bench):
    store, _ = bench
    name = "model.layers.1.mlp.down_proj"
    # The first weight to go is broken: only whoever leaves this unit dense still has it.
    first_OI = store._ranks[name] == 0
    kept = store._dense[name][first_OI]
    field = [*proposals, Proposal(proposals[1].allocation | {name: 0}, "test")]
    store.load(proposals[0].allocation)
    store._dense[name][first_OI] = value
    try:
        candidates = make_racer().race("main", 0, field)
    finally:
        store._dense[name][first_OI] = kept
        store.restore()
    broken = candidates[-1]
    assert (broken.state, broken.score, broken.reason) == (State.FAILED, None, "the score is not finite")
    assert (broken.n_windows, broken.n_tokens) == (2, 2 * N_TOKENS)
    assert [c.id for c in best(candidates, 7)] == [1, 5]
    again = make_racer().race("main", 0, field)
    assert again == candidates


def test_a_proposal_without_an_allocation_fails_for_its_own_reason_and_costs_nothing(make_racer, proposals):
    failure = Proposal(None, "self_pruner", failure="no JSON object")
    racer = make_racer()
    failed, *others = racer.race("main", 0, [failure, *proposals[:2]])
    assert (failed.state, failed.reason, failed.n_tokens, failed.score) == (State.FAILED, "no JSON object", 0, None)
    assert [c.state for c in others] == [State.COMPLETE] * 2
    assert {r["candidate"] for r in records(racer)} == {1, 2}
    assert racer.race("other", 0, [failure])[0].state is State.FAILED


def test_a_recorded_race_is_recalled_without_evaluating(make_racer, proposals, bench, tmp_path):
    racer = make_racer()
    candidates = racer.race("main", 0, proposals)

    # Without store and evaluator nothing could be evaluated.
    class Grid:
        grid = bench[0].grid

    class Evaluator:
        n_tokens_per_window = N_TOKENS

    recalled = Racer(Grid(), Evaluator(), LADDER, Journal(tmp_path / "evaluations.jsonl"))
    assert recalled.race("main", 0, proposals) == candidates
    assert recalled.seconds == racer.seconds == pytest.approx(math.fsum(r["seconds"] for r in records(racer)), abs=1e-9)
    assert racer.seconds > 0


@pytest.mark.parametrize("n_lines", [0, 1, 5, 8])
def test_a_race_that_was_broken_off_ends_as_the_unbroken_one(n_lines, make_racer, proposals, tmp_path):
    racer = make_racer()
    candidates = racer.race("main", 0, proposals)
    lines = racer.journal.path.read_text().splitlines(keepends=True)
    (tmp_path / "broken.jsonl").write_text("".join(lines[:n_lines]))
    resumed = make_racer(name="broken.jsonl")
    assert list(map(to_record, resumed.race("main", 0, proposals))) == list(map(to_record, candidates))
    without_seconds = [{**r, "seconds": 0} for r in records(racer)]
    assert [{**r, "seconds": 0} for r in records(resumed)] == without_seconds


def test_candidates_that_share_blocks_are_scored_one_after_the_other(make_racer, bench):
    grid = bench[0].grid
    a, b = grid_allocation(grid, 0.2), grid_allocation(grid, 0.4)
    last = {unit.name: b[unit.name] if unit.block == 1 else a[unit.name] for unit in grid.units}
    racer = make_racer(Ladder([2], []))
    racer.race("main", 0, [Proposal(allocation, "test") for allocation in (a, b, last)])
    assert [r["candidate"] for r in records(racer)] == [0, 2, 1]


def test_block_versions_tell_blocks_apart():
    units = [Unit("a", 0, "w", 4), Unit("b", 2, "w", 4), Unit("c", 2, "v", 4)]
    grid = LevelGrid.with_constant_step(units, 0.25)
    assert block_versions({"c": 3, "b": 2, "a": 1}, grid) == [(1,), (), (2, 3)]


def test_paired_z_is_the_mean_difference_in_standard_errors():
    differences = [0.5, 1.5, 1.0, 2.0]
    others = [3.0, 1.0, 7.0, 2.0]
    scores = [other + difference for other, difference in zip(others, differences, strict=True)]
    deviation = math.sqrt(sum((d - 1.25) ** 2 for d in differences) / 3)
    assert paired_z(scores, others) == pytest.approx(1.25 / (deviation / 2), rel=1e-12)
    assert paired_z(others, scores) == -paired_z(scores, others)


def test_paired_z_of_equal_differences_is_sure_and_of_a_single_pair_unknown():
    assert paired_z([1.0, 2.0], [0.0, 1.0]) == math.inf
    assert paired_z([0.0, 1.0], [1.0, 2.0]) == -math.inf
    assert paired_z([1.0, 2.0], [1.0, 2.0]) == 0.0
    assert paired_z([5.0], [1.0]) == 0.0
    with pytest.raises(ValueError, match="zip"):
        paired_z([1.0], [1.0, 2.0])


def test_one_window_stops_nobody_as_clearly_worse(make_racer, proposals):
    candidates = make_racer(Ladder([1, 4], [6], z_worse=0.0)).race("main", 0, proposals)
    assert {(c.state, c.n_windows) for c in candidates} == {(State.COMPLETE, 4)}


@pytest.mark.parametrize(
    ("n_windows", "n_survivors"),
    [([], []), ([0, 4], [1]), ([4, 4], [1]), ([8, 4], [1]), ([4, 8], []), ([4, 8], [1, 1]), ([4], [1]), ([4, 8], [0])],
)
def test_a_ladder_that_does_not_rise_is_refused(n_windows, n_survivors):
    with pytest.raises(ConfigError, match=r"search\.ladder.* got "):
        Ladder(n_windows, n_survivors)
