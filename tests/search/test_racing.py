"""Races of scripted scores, where the rules are under test, and of a real model, where the scores are."""

import itertools
import json
import math
import random
import statistics

import pytest
import torch
from calibrated import mask_levels
from hypothesis import given, settings
from hypothesis import strategies as st

from selfprune.allocations.archive import to_record
from selfprune.allocations.candidate import Proposal, State, best
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.paired import paired_z
from selfprune.allocations.unit import Unit
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.models.loading import LoadedModel
from selfprune.models.units import find_blocks, list_units
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.search.bench import Bench, block_versions, visiting_order
from selfprune.search.ladder import Ladder
from selfprune.search.racing import Racer
from selfprune.search.scoring import Scorer
from selfprune.storage.journal import Journal

N_WINDOWS, N_TOKENS = 8, 12
LADDER = Ladder([2, 4, 8], [3, 2], z_worse=math.inf, grows=False)
GRID = LevelGrid.with_constant_step([Unit("a", 0, "w", 100), Unit("b", 1, "w", 100)], 0.01)


class ScriptedScorer:
    """Scores by a function of the level of `a` and the window; keeps what it was asked."""

    grid, n_tokens_per_window = GRID, N_TOKENS

    def __init__(self, score_of, n_windows=8):
        self.score_of, self.n_windows, self.asked, self.expected = score_of, n_windows, [], []
        self.last = at(0)

    def expect(self, work):
        self.expected += [(allocation["a"], list(windows)) for allocation, windows in work]

    def score(self, search, candidate, allocation, windows):
        self.last = allocation
        self.asked.append((candidate, allocation["a"], list(windows)))
        return {window: self.score_of(allocation["a"], window) for window in windows}

    def n_scored(self):
        return sum(len(windows) for _, _, windows in self.asked)


def at(level):
    return {"a": level, "b": 100 - level}


def offer(*levels, proposer="test"):
    return [Proposal(None if level is None else at(level), proposer) for level in levels]


def scripted(score_of, ladder=LADDER, seed=0, search="main", **options):
    return Racer(search, ScriptedScorer(score_of, **options), ladder, seed)


class Races:
    """Races one after the other, with the ids that an archive would give."""

    def __init__(self, racer):
        self.racer, self.candidates = racer, []

    def race(self, *levels):
        found = self.racer.race(len(self.candidates), offer(*levels))
        self.candidates += found
        return found


# The rules, on scripted scores.


def test_the_incumbent_runs_in_every_last_heat_on_the_same_windows_and_can_hold_its_place():
    """Level 50 is better by so much less on every window that a mean over other windows would hide it."""
    races = Races(scripted(lambda level, window: 10 * window + abs(level - 50), Ladder([2, 4, 8], [2, 2], z_better=0.0)))
    (first,) = races.race(50)
    assert (first.gain, first.n_windows, races.racer.incumbent) == (0.0, 2, first)
    (worse,) = races.race(51)
    assert (worse.gain, worse.n_windows, races.racer.incumbent) == (None, 2, first)
    # the next rung is open now, so the incumbent is scored on its new windows, and on them alone
    other, again = races.race(49)
    assert (other.gain, other.n_windows, other.n_tokens) == (None, 4, 4 * N_TOKENS)
    assert (again.allocation, again.n_windows, again.n_tokens, again.state) == (at(50), 4, 2 * N_TOKENS, State.COMPLETE)
    assert (again.proposal.operator, again.proposal.parents, again.gain) == ("re-entry", (first.id,), None)
    assert again.score == other.score - 1
    assert races.racer.incumbent == again
    assert races.racer.champions == [first]


def test_an_incumbent_on_known_windows_costs_nothing_and_leaves_no_line():
    races = Races(scripted(lambda level, window: float(level)))
    assert len(races.race(50)) == 1
    asked = len(races.racer.scorer.asked)
    assert len(races.race(60, 40)) == 2
    assert {level for _, level, _ in races.racer.scorer.asked[asked:]} == {60, 40}


def test_a_gain_is_the_paired_difference_to_the_incumbent():
    races = Races(scripted(lambda level, window: level * (1 + window % 3) / 7))
    (first,) = races.race(50)
    second, third = races.race(40, 45)
    expected = statistics.fmean((50 - 40) * (1 + window % 3) / 7 for window in range(8))
    assert second.gain == pytest.approx(expected, rel=1e-12)
    assert second.gain == first.score - second.score
    assert third.gain is None
    assert races.racer.champions == [first, second]


SHIFT = {50: 0.0, 51: 1.0, 49: -0.01, 40: -10.0, 30: -20.0, 20: -30.0}


def shifted(level, window):
    """Level 49 is better than 50 by far less than the scores vary; the others are worse or better by the same on every window."""
    noise = (3.0 if window % 2 else -3.0) if level == 49 else 0.0
    return 100.0 + SHIFT[level] + noise


@pytest.mark.parametrize(
    ("rounds", "n_open"),
    [
        ([[50]], [1]),
        ([[50], [51], [40], [30]], [1, 2, 2, 2]),
        ([[50], [49]], [1, 2]),
        ([[50], [40], [30], [20]], [1, 1, 1, 1]),
        ([[50], [51], [51], [51], [51]], [1, 2, 3, 3, 3]),
        ([[None]], [2]),
        ([[50], [50]], [1, 2]),
    ],
    ids=["first", "one worse", "unclear gain", "clear gains", "never beyond the last", "nobody", "the incumbent itself"],
)
def test_one_rung_opens_when_a_race_brings_no_clear_gain(rounds, n_open):
    races, seen = Races(scripted(shifted, Ladder([2, 4, 8], [2, 2]))), []
    for levels in rounds:
        n_before = races.racer.n_open
        raced = races.race(*levels)
        assert {c.n_windows for c in raced if c.state is State.COMPLETE} <= {[2, 4, 8][n_before - 1]}
        seen.append(races.racer.n_open)
    assert seen == n_open


def test_an_unclear_gain_still_takes_the_place():
    races = Races(scripted(shifted, Ladder([4, 8], [2], z_better=1.0)))
    races.race(50)
    (better,) = races.race(49)
    assert better.gain == pytest.approx(0.01)
    assert races.racer.incumbent == better


@pytest.mark.parametrize(("z_better", "n_open"), [(0.0, 1), (1e9, 2)])
def test_how_clear_a_gain_must_be_is_a_setting(z_better, n_open):
    races = Races(scripted(shifted, Ladder([4, 8], [2], z_better=z_better)))
    races.race(50)
    races.race(49)
    assert races.racer.n_open == n_open


def test_on_one_window_the_lower_score_takes_the_place():
    races = Races(scripted(lambda level, window: float(level), Ladder([1], [], grows=False), n_windows=1))
    races.race(50)
    (better,) = races.race(49)
    assert (better.gain, races.racer.incumbent) == (1.0, better)
    races.race(51)
    assert races.racer.incumbent == better


def fresh_rungs(seed, search="main", n_races=4):
    """Per race, the windows of each rung, from what was asked of a candidate that always wins."""
    ladder = Ladder([4, 8], [2], grows=False, fresh=True, z_worse=math.inf)
    racer = scripted(lambda level, window: float(level), ladder, seed, search, n_windows=20)
    drawn = []
    for race in range(n_races):
        racer.scorer.asked.clear()
        levels = [90 - 10 * race - i for i in range(4)]
        raced = racer.race(100 * race, offer(*levels))
        assert [c.n_windows for c in raced] == [4, 4, 8, 8, *([8] if race else [])]
        of_level = {level: [windows for _, asked, windows in racer.scorer.asked if asked == level] for level in levels}
        rungs = [of_level[levels[0]][0], sorted({*of_level[levels[-1]][0], *of_level[levels[-1]][-1]})]
        assert all(windows[0] == rungs[0] for windows in of_level.values())
        assert of_level[levels[2]] == of_level[levels[3]]
        drawn.append(of_level[levels[3]])
    return drawn


def test_fresh_rungs_differ_from_race_to_race_and_between_seeds_and_repeat_for_one_seed():
    rungs = fresh_rungs(0)
    assert len({json.dumps(of_race) for of_race in rungs}) == len(rungs)
    assert fresh_rungs(0) == rungs
    assert fresh_rungs(1) != rungs
    assert fresh_rungs(0, search="random") != rungs


def test_with_fresh_rungs_the_incumbent_has_a_line_in_every_race():
    ladder = Ladder([2, 4], [2], grows=False, fresh=True)
    races = Races(scripted(lambda level, window: level + 100 * window, ladder, n_windows=20))
    races.race(50, 51)
    for _ in range(3):
        *others, held = races.race(52, 53)
        assert held.proposal.operator == "re-entry"
        assert (held.allocation, held.n_windows, held.state) == (at(50), 4, State.COMPLETE)
        assert others[0].score == held.score + 2
        assert races.racer.incumbent == held
        known = set()
        for _, level, windows in races.racer.scorer.asked:
            assert not {(level, window) for window in windows} & known
            known |= {(level, window) for window in windows}


def test_the_same_allocation_twice_in_one_race_costs_once():
    races = Races(scripted(lambda level, window: float(level)))
    first, twin, other = races.race(50, 50, 60)
    assert (first.score, first.state, first.n_windows) == (twin.score, twin.state, twin.n_windows)
    assert (first.n_tokens, twin.n_tokens) == (8 * N_TOKENS, 0)
    assert (first.gain, twin.gain, other.gain) == (0.0, None, None)
    (third,) = races.race(50)
    assert (third.score, third.n_tokens, third.gain) == (first.score, 0, None)
    assert races.racer.incumbent == first


def test_the_order_in_which_an_allocation_names_its_units_makes_no_other_one():
    racer = scripted(lambda level, window: float(level))
    (one,) = racer.race(0, [Proposal({"a": 30, "b": 70}, "test")])
    same, other = racer.race(1, [Proposal({"b": 70, "a": 30}, "test"), Proposal({"b": 30, "a": 70}, "test")])
    assert (same.score, same.n_tokens) == (one.score, 0)
    assert (other.score, other.n_tokens) == (70.0, 2 * N_TOKENS * 4)


def test_an_incumbent_whose_twin_paid_for_the_new_windows_has_a_line_that_says_so():
    races = Races(scripted(lambda level, window: float(level), Ladder([2, 4, 8], [2, 2])))
    races.race(50)
    races.race(51)
    twin, again = races.race(50)
    assert (twin.n_windows, twin.n_tokens, twin.gain) == (4, 2 * N_TOKENS, None)
    assert (again.n_windows, again.n_tokens, again.proposal.operator) == (4, 0, "re-entry")
    assert races.racer.incumbent == again


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_an_incumbent_that_breaks_on_further_windows_fails_and_leaves(broken):
    races = Races(scripted(lambda level, window: broken if level == 40 and window >= 2 else float(level), Ladder([2, 4], [2])))
    (first,) = races.race(50)
    (second,) = races.race(40)
    assert races.racer.incumbent == second
    races.race(51)
    failed, again = races.race(None)
    assert failed.state is State.FAILED
    assert (again.allocation, again.state, again.score, again.reason) == (
        at(40), State.FAILED, None, "the score is not finite",
    )  # fmt: skip
    assert (again.n_windows, again.n_tokens) == (4, 2 * N_TOKENS)
    assert races.racer.incumbent == first
    assert races.racer.champions == [first]
    worse, back = races.race(60)
    assert (back.allocation, back.state) == (at(50), State.COMPLETE)
    assert worse.gain is None
    assert races.racer.incumbent == back


def test_whoever_is_scored_beside_a_failing_incumbent_takes_its_place():
    races = Races(scripted(lambda level, window: math.nan if level == 40 and window >= 2 else float(level), Ladder([2, 4], [2])))
    races.race(40)
    races.race(41)
    better, failed = races.race(60)
    assert (better.gain, better.n_windows, failed.state) == (0.0, 4, State.FAILED)
    assert races.racer.champions == [better]


def test_without_an_incumbent_and_without_a_score_there_is_still_none():
    races = Races(scripted(lambda level, window: math.nan))
    for levels in ([1, 2], [None], [3]):
        assert {c.state for c in races.race(*levels)} == {State.FAILED}
        assert races.racer.incumbent is None
    assert races.racer.final_rung(9, 3) == []
    assert races.racer.n_tokens_of_final_rung(3) == 0


def test_the_last_champions_meet_on_all_windows_for_what_was_announced():
    races = Races(scripted(lambda level, window: float(level), Ladder([2, 4], [2], z_better=0.0)))
    for level in (50, 40, 30, 20):
        races.race(level)
    # the newest two have seen two windows of eight each
    assert races.racer.n_tokens_of_final_rung(2) == 2 * 6 * N_TOKENS
    heat = races.racer.final_rung(len(races.candidates), 2)
    assert [(c.id, c.allocation, c.proposal.parents) for c in heat] == [(4, at(20), (3,)), (5, at(30), (2,))]
    assert {(c.n_windows, c.n_tokens, c.state, c.proposal.operator) for c in heat} == {
        (8, 6 * N_TOKENS, State.COMPLETE, "final"),
    }  # fmt: skip
    assert best([*races.candidates, *heat], 3)[:2] == heat
    assert races.racer.n_tokens_of_final_rung(2) == 0
    assert races.racer.n_tokens_of_final_rung(9) == 2 * 6 * N_TOKENS


@pytest.mark.parametrize(("max_tokens", "levels"), [(18, [20, 30, 40]), (17, [20, 30]), (12, [20, 30]), (11, []), (0, [])])
def test_the_oldest_champions_stay_away_from_a_final_heat_that_is_not_paid(max_tokens, levels):
    races = Races(scripted(lambda level, window: float(level), Ladder([2, 4], [2], z_better=0.0)))
    for level in (50, 40, 30, 20):
        races.race(level)
    heat = races.racer.final_rung(len(races.candidates), 3, max_tokens * N_TOKENS)
    assert [c.allocation for c in heat] == [at(level) for level in levels]
    assert sum(c.n_tokens for c in heat) <= max_tokens * N_TOKENS


def test_a_champion_that_won_its_place_again_is_in_the_final_heat_once():
    script = {50: [1, 9], 40: [5, 0]}
    ladder = Ladder([1, 2], [2], z_better=0.0)
    races = Races(scripted(lambda level, window: script[level][window], ladder, n_windows=2))
    for levels in ((50,), (40,), (40,), (50,)):
        races.race(*levels)
    assert [c.allocation for c in races.racer.champions] == [at(50), at(40)]
    assert [c.allocation for c in races.racer.final_rung(9, 5)] == [at(40), at(50)]


def test_a_champion_that_breaks_in_the_final_heat_is_not_the_best():
    races = Races(scripted(lambda level, window: math.nan if level == 40 and window >= 4 else float(level), Ladder([2, 4], [2])))
    races.race(50)
    races.race(40)
    heat = races.racer.final_rung(2, 2)
    assert [c.state for c in heat] == [State.FAILED, State.COMPLETE]
    assert best([*races.candidates, *heat]) == [heat[1]]


def test_tokens_of_the_proposal_are_added_to_those_of_the_scores():
    racer = scripted(lambda level, window: float(level))
    proposals = [Proposal(at(50), "g", proposal_tokens=1000), Proposal(None, "g", failure="why", proposal_tokens=7), *offer(60)]
    raced = racer.race(0, proposals)
    assert [c.n_tokens for c in raced] == [1000 + 8 * N_TOKENS, 7, 8 * N_TOKENS]
    racer.race(3, offer(40))
    # whoever runs again does not pay for how it was found
    assert [c.n_tokens for c in racer.final_rung(4, 2)] == [0, 0]


def test_a_final_heat_of_one_is_spared_unless_the_windows_are_fresh():
    racer = scripted(lambda level, window: float(level))
    racer.race(0, offer(60, 50))
    assert racer.final_rung(2, 1) == []
    assert racer.n_tokens_of_final_rung(1) == 0


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(["grows", "whole", "fresh"]))
def test_every_candidate_ends_somehow_and_every_token_is_on_somebody(seed, mode):
    rng = random.Random(seed)
    n_survivors = [rng.randint(1, 4), rng.randint(1, 3)]
    ladder = Ladder(
        [2, 4, 8], n_survivors, rng.choice([0.5, 3.0, math.inf]), rng.choice([0.0, 1.0, 2.0]), mode == "grows", mode == "fresh"
    )
    breaks_at = {level: rng.choice([0, 3, 6]) for level in range(20) if rng.random() < 0.2}
    script = [[level / 10 + rng.gauss(0, 1) for _ in range(12)] for level in range(20)]

    def score_of(level, window):
        return rng.choice([math.nan, math.inf]) if window >= breaks_at.get(level, 99) else script[level][window]

    racer = scripted(score_of, ladder, n_windows=12)
    races, held = Races(racer), None
    for _ in range(rng.randint(1, 6)):
        n_open = racer.n_open
        raced = races.race(*(rng.choice([None, *range(20)]) for _ in range(rng.randint(1, 6))))
        complete = [c for c in raced if c.state is State.COMPLETE]
        assert all(c.reason for c in raced if c.state is State.STOPPED)
        assert len({c.n_windows for c in complete}) <= 1
        won = [c for c in raced if c.gain is not None]
        if racer.incumbent is None:
            assert not complete
            assert not won
        elif won:
            assert won == [racer.incumbent]
            assert won[0].gain >= 0
        else:
            assert held is None or racer.incumbent.state is State.COMPLETE
        if racer.incumbent:
            assert math.isfinite(racer.incumbent.score)
            assert all(c.score >= racer.incumbent.score for c in complete if racer.incumbent in raced or mode != "fresh")
        assert racer.n_open - n_open in (0, 1)
        assert racer.n_open <= 3
        held = racer.incumbent
    reserve = racer.n_tokens_of_final_rung(3)
    heat = racer.final_rung(len(races.candidates), 3)
    assert sum(c.n_tokens for c in heat) == reserve
    assert [c.id for c in races.candidates + heat] == list(range(len(races.candidates) + len(heat)))
    for c in races.candidates + heat:
        assert (c.score is None) == (c.state is State.FAILED)
        assert (c.gain is None) or c.state is State.COMPLETE
    assert sum(c.n_tokens for c in races.candidates + heat) == racer.scorer.n_scored() * N_TOKENS
    pairs = [(level, window) for _, level, windows in racer.scorer.asked for window in windows]
    assert len(pairs) == len(set(pairs))


# The budget.


def by_level(level, window):
    return level + 0.1 * window


def test_no_more_go_on_than_can_be_paid():
    # Six on two windows each, three on two more; of four further windows, one can pay instead of two.
    racer = scripted(by_level)
    raced = racer.race(0, offer(50, 51, 52, 53, 54, 55), max_tokens=(6 * 2 + 3 * 2 + 4) * N_TOKENS)
    assert [c.n_windows for c in raced] == [8, 4, 4, 2, 2, 2]
    assert sum(c.n_tokens for c in raced) == (6 * 2 + 3 * 2 + 4) * N_TOKENS


def test_a_race_that_cannot_be_paid_to_its_end_leaves_the_incumbent():
    races = Races(scripted(by_level))
    races.race(50)
    raced = races.racer.race(1, offer(40, 41), max_tokens=2 * 2 * N_TOKENS)
    assert [(c.state, c.reason) for c in raced] == [(State.STOPPED, "no tokens left for more than 2 windows")] * 2
    assert races.racer.incumbent.allocation == at(50)


def test_a_first_race_that_cannot_be_paid_to_its_end_still_has_a_winner():
    racer = scripted(by_level)
    raced = racer.race(0, offer(40, 41, None), max_tokens=1)
    assert [c.state for c in raced] == [State.COMPLETE, State.COMPLETE, State.FAILED]
    assert racer.incumbent == raced[0]
    assert {c.n_windows for c in raced[:2]} == {2}


def test_a_rung_that_is_new_to_the_incumbent_opens_only_if_it_can_be_paid():
    # The second rung: two more windows for each of two candidates, and for the incumbent.
    for n_windows, n_seen in ((2 * 2 + 2 * 2 + 2, 4), (2 * 2 + 2 * 2 + 1, 2)):
        races = Races(scripted(by_level, Ladder([2, 4, 8], [2, 2])))
        races.race(50)
        races.race(60)
        raced = races.racer.race(2, offer(40, 41), max_tokens=n_windows * N_TOKENS)
        assert races.racer.incumbent in raced
        assert races.racer.incumbent.n_windows == n_seen


def test_what_a_proposal_has_cost_is_paid_from_the_same_tokens():
    races = Races(scripted(by_level))
    races.race(50)
    (dear,) = races.racer.race(1, [Proposal(at(40), "test", proposal_tokens=6 * N_TOKENS)], max_tokens=12 * N_TOKENS)
    assert dear.state is State.STOPPED
    assert dear.n_tokens == (6 + 4) * N_TOKENS


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(["grows", "whole", "fresh"]), st.integers(0, 80))
def test_only_the_first_rung_goes_beyond_the_tokens(seed, mode, max_windows):
    rng = random.Random(seed)
    ladder = Ladder([2, 4, 8], [rng.randint(1, 4), rng.randint(1, 3)], math.inf, 1.0, mode == "grows", mode == "fresh")
    racer = scripted(by_level, ladder, n_windows=12)
    races = Races(racer)
    for _ in range(rng.randint(0, 3)):
        races.race(*(rng.randint(0, 99) for _ in range(rng.randint(1, 5))))
    levels = [rng.randint(0, 99) for _ in range(rng.randint(1, 5))]
    raced = racer.race(len(races.candidates), offer(*levels), max_windows * N_TOKENS)
    assert sum(c.n_tokens for c in raced) <= max(max_windows, 2 * (len(levels) + 1)) * N_TOKENS
    assert racer.incumbent
    assert all(c.reason for c in raced if c.state is State.STOPPED)


# The scores, on a real model.


def make_bench(model, n_windows, *prefix_bytes):
    """A level store, and an evaluator for each bound on the hidden states that are kept."""
    loaded = LoadedModel(model, None, list_units(model), find_blocks(model)[1], torch.device("cpu"))
    windows_NT = torch.randint(0, 300, (n_windows, N_TOKENS), generator=torch.Generator().manual_seed(0))
    grid = LevelGrid.with_constant_step(loaded.units, 0.05)
    store = mask_levels(loaded, grid, windows_NT, Magnitude(), 4)
    # Random logits are nearly flat; sharper ones make the candidates differ.
    model.lm_head.weight.mul_(50)
    metrics = {"score": KLDivergence()}
    return store, *(WindowEvaluator(metrics, model, loaded.blocks, windows_NT, 2, n) for n in prefix_bytes)


@pytest.fixture(scope="module")
def bench(make_tiny_model):
    """A real level store and evaluator, each made once; loading an allocation undoes the one before."""
    return make_bench(make_tiny_model("llama"), N_WINDOWS, 10**6)


@pytest.fixture
def make_racer(bench, tmp_path):
    def make(ladder=LADDER, name="evaluations.jsonl", search="main"):
        bench[0].restore()
        return Racer(search, Scorer(Bench(*bench), Journal(tmp_path / name)), ladder, seed=0)

    return make


@pytest.fixture
def proposals(bench):
    """From a little pruning to much, in a mixed order."""
    grid = bench[0].grid
    sparsities = [0.5, 0.1, 0.7, 0.3, 0.6, 0.2]
    return [Proposal(grid_allocation(grid, s), "test") for s in sparsities]


def grid_allocation(grid, sparsity):
    return {unit.name: grid.levels[unit.name].items[1] * round(sparsity * grid.levels[unit.name].n_steps) for unit in grid.units}


def records(racer):
    return [json.loads(line) for line in racer.scorer.journal.path.read_text().splitlines()]


def test_the_field_narrows_rung_by_rung_on_the_same_windows(make_racer, proposals):
    candidates = make_racer().race(10, proposals)
    assert [c.id for c in candidates] == list(range(10, 16))
    assert [c.proposal for c in candidates] == proposals
    seen = [c.n_windows for c in candidates]
    assert sorted(seen) == [2, 2, 2, 4, 8, 8]
    assert [c.n_tokens for c in candidates] == [n * N_TOKENS for n in seen]
    assert all((c.state is State.COMPLETE) == (c.n_windows == 8) for c in candidates)
    # Less pruning is better here, so the two with the least are left.
    assert [c.id for c in best(candidates, 6)] == [11, 15]
    assert [c.gain for c in candidates] == [None, 0.0, None, None, None, None]


def test_a_survivor_is_scored_only_on_windows_that_it_has_not_seen(make_racer, proposals):
    racer = make_racer()
    for candidate in racer.race(0, proposals):
        mine = [r for r in records(racer) if r["candidate"] == candidate.id]
        assert [r["windows"] for r in mine] == [[0, 1], [2, 3], [4, 5, 6, 7]][: len(mine)]
        scores = [score for r in mine for score in r["window_scores"]]
        assert candidate.score == math.fsum(scores) / len(scores)
        assert len(scores) == candidate.n_windows


def test_scores_equal_those_of_the_model_on_its_own(make_racer, proposals, bench):
    store, evaluator = bench
    candidates = make_racer(Ladder([8], [], grows=False)).race(0, proposals)
    for candidate in candidates:
        store.restore()
        evaluator.forward.clear()
        store.load(candidate.allocation)
        alone = statistics.fmean(evaluator.evaluate([f"only {candidate.id}"] * 2)["score"])
        assert (candidate.score, candidate.n_windows) == (alone, 8)


def test_whoever_is_stopped_is_told_the_rank(make_racer, proposals):
    candidates = make_racer().race(0, proposals)
    reasons = {c.proposal.allocation["model.layers.0.mlp.up_proj"]: c.reason for c in candidates if c.state is State.STOPPED}
    ranked = [reasons[level] for level in sorted(reasons)]
    assert ranked == ["rank 3 of 3 after 4 windows", *(f"rank {rank} of 6 after 2 windows" for rank in (4, 5, 6))]


def test_whoever_is_clearly_worse_is_stopped_whatever_the_rank(make_racer, proposals):
    kept = make_racer(Ladder([4, 8], [6], z_worse=math.inf, grows=False), "kept.jsonl").race(0, proposals)
    assert {c.state for c in kept} == {State.COMPLETE}
    candidates = make_racer(Ladder([4, 8], [6], z_worse=0.0, grows=False)).race(0, proposals)
    assert [c.id for c in best(candidates, 6)] == [1]
    for candidate in candidates:
        if candidate.id != 1:
            assert candidate.state is State.STOPPED
            assert candidate.reason.startswith("worse than the best by ")
            assert candidate.reason.endswith(" standard errors after 4 windows")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_fails_and_is_never_best(value, make_racer, proposals, bench):
    store, _ = bench
    name = "model.layers.1.mlp.down_proj"
    # The first weights to go are broken: only whoever leaves this unit dense still has it.
    first_OI = store._first_levels[name] == 1
    kept = store.dense(name)[first_OI]
    field = [*proposals, Proposal(proposals[1].allocation | {name: 0}, "test")]
    racer = make_racer()
    store.load(proposals[0].allocation)
    store.dense(name)[first_OI] = value
    try:
        candidates = racer.race(0, field)
    finally:
        store.dense(name)[first_OI] = kept
        store.restore()
    broken = candidates[-1]
    assert (broken.state, broken.score, broken.reason) == (State.FAILED, None, "the score is not finite")
    assert (broken.n_windows, broken.n_tokens) == (2, 2 * N_TOKENS)
    assert [c.id for c in best(candidates, 7)] == [1, 5]
    assert make_racer().race(0, field) == candidates


def test_a_proposal_without_an_allocation_fails_for_its_own_reason_and_costs_nothing(make_racer, proposals):
    failure = Proposal(None, "self_pruner", failure="no JSON object")
    racer = make_racer()
    failed, *others = racer.race(0, [failure, *proposals[:2]])
    assert (failed.state, failed.reason, failed.n_tokens, failed.score) == (State.FAILED, "no JSON object", 0, None)
    assert [c.state for c in others] == [State.COMPLETE] * 2
    assert {r["candidate"] for r in records(racer)} == {1, 2}
    assert make_racer(name="other.jsonl").race(0, [failure])[0].state is State.FAILED


def test_a_recorded_race_is_recalled_without_evaluating(make_racer, proposals, bench, tmp_path):
    racer = make_racer()
    candidates = racer.race(0, proposals)

    # Without weights nothing could be evaluated.
    class Store:
        grid, allocation = bench[0].grid, dict.fromkeys(bench[0].allocation, 0)

    class Evaluator:
        n_windows, n_tokens_per_window = N_WINDOWS, N_TOKENS

    scorer = Scorer(Bench(Store(), Evaluator()), Journal(tmp_path / "evaluations.jsonl"))
    assert Racer("main", scorer, LADDER, seed=0).race(0, proposals) == candidates
    assert scorer.seconds == racer.scorer.seconds == pytest.approx(math.fsum(r["seconds"] for r in records(racer)), abs=1e-9)
    assert scorer.seconds > 0


@pytest.mark.parametrize("n_lines", [0, 1, 5, 8])
def test_a_race_that_was_broken_off_ends_as_the_unbroken_one(n_lines, make_racer, proposals, tmp_path):
    racer = make_racer()
    candidates = racer.race(0, proposals)
    lines = racer.scorer.journal.path.read_text().splitlines(keepends=True)
    (tmp_path / "broken.jsonl").write_text("".join(lines[:n_lines]))
    resumed = make_racer(name="broken.jsonl")
    assert list(map(to_record, resumed.race(0, proposals))) == list(map(to_record, candidates))
    without_seconds = [{**r, "seconds": 0} for r in records(racer)]
    assert [{**r, "seconds": 0} for r in records(resumed)] == without_seconds


def test_candidates_that_share_blocks_are_scored_one_after_the_other(make_racer, bench):
    grid = bench[0].grid
    a, b = grid_allocation(grid, 0.2), grid_allocation(grid, 0.4)
    last = {unit.name: b[unit.name] if unit.block == 1 else a[unit.name] for unit in grid.units}
    racer = make_racer(Ladder([2], []))
    racer.race(0, [Proposal(allocation, "test") for allocation in (a, b, last)])
    assert [r["candidate"] for r in records(racer)] == [0, 2, 1]


N_BLOCKS = 4


def prefixes(versions):
    return {tuple(versions[:depth]) for depth in range(1, N_BLOCKS + 1)}


def test_every_node_of_the_prefix_tree_is_computed_once_and_every_score_is_that_of_a_full_pass(make_tiny_model, tmp_path):
    rng = random.Random(0)
    store, evaluator, without_reuse = make_bench(make_tiny_model("llama", num_hidden_layers=N_BLOCKS), 4, 10**7, 0)
    scorer, grid = Scorer(Bench(store, evaluator), Journal(tmp_path / "evaluations.jsonl")), store.grid
    racer, path, n_saved = Racer("main", scorer, Ladder([4], [], grows=False), 0), None, 0
    for race in range(3):
        levels = [[rng.choice([0.1, 0.3, 0.5]) for _ in range(N_BLOCKS)] for _ in range(12)]
        wishes = [
            {u.name: grid.levels[u.name].items[1] * round(row[u.block] * grid.levels[u.name].n_steps) for u in grid.units}
            for row in levels
        ]
        n_run = evaluator.forward.n_blocks_run
        raced = racer.race(20 * race, [Proposal(wish, "test") for wish in wishes])
        fresh = [c.allocation for c in raced if c.n_tokens]
        tree = set().union(*(prefixes(block_versions(allocation, grid)) for allocation in fresh))
        walked = prefixes(path) if path else set()
        assert evaluator.forward.n_blocks_run - n_run == scorer.n_windows * len(tree - walked)
        n_saved += scorer.n_windows * len(walked & tree)
        path = block_versions(scorer.last, grid)
        for c in raced:
            store.load(c.allocation)
            assert c.score == statistics.fmean(without_reuse.evaluate(["unknown"] * N_BLOCKS)["score"])
    assert n_saved > 0
    assert evaluator.forward.n_blocks_run < evaluator.forward.n_blocks_asked


def test_the_visit_begins_where_the_current_allocation_leads():
    units = [Unit(f"{block}", block, "w", 10) for block in range(3)]
    grid = LevelGrid.with_constant_step(units, 0.1)
    allocations = [dict(zip("012", levels, strict=True)) for levels in itertools.product([1, 2, 3], repeat=3)]
    random.Random(0).shuffle(allocations)
    order = visiting_order(allocations, {"0": 2, "1": 3, "2": 1}, grid)
    visited = [tuple(allocations[i].values()) for i in order]
    assert visited[:4] == [(2, 3, 1), (2, 3, 2), (2, 3, 3), (2, 1, 1)]
    for depth in (1, 2):
        runs = [prefix for prefix, _ in itertools.groupby(visited, key=lambda levels, depth=depth: levels[:depth])]
        assert len(runs) == len(set(runs)) == 3**depth


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
    candidates = make_racer(Ladder([1, 4], [6], z_worse=0.0, grows=False)).race(0, proposals)
    assert {(c.state, c.n_windows) for c in candidates} == {(State.COMPLETE, 4)}


def test_what_is_said_to_come_next_is_what_is_scored_in_that_order():
    racer = scripted(lambda level, window: level + window)
    scorer = racer.scorer
    racer.race(0, offer(50, 20, None, 70, 30))
    racer.race(6, offer(10, 60))
    assert scorer.expected == [(level, windows) for _, level, windows in scorer.asked]
    assert len(scorer.expected) > 6
