"""The gradient proposer against a score whose moves and minimum are known exactly."""

import math
from dataclasses import dataclass, field, replace

import pytest

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.move_values import MoveValues
from selfprune.proposers.searches.gradient import Gradient

SIZES = {"q": 400, "k": 100, "up": 1000, "down": 1003}
UNITS = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(4) for kind, n in SIZES.items()]
GRID = LevelGrid.with_constant_step(UNITS, 0.02)
STEP = 2
N_TOKENS = 1000
N_WINDOWS = 20
# Sparsities of the minimum on the budget, different for all units; there, all weights have one marginal cost.
BEST = {unit.name: 0.25 + 0.7 * ((7 * i) % 16) / 15 for i, unit in enumerate(UNITS)}
GROWTH = 6.0
N_TARGET = math.ceil(sum(BEST[unit.name] * unit.n_weights for unit in UNITS))


def score(allocation):
    """Separable; the marginal cost of a unit's weights grows exponentially with its sparsity."""
    return sum(
        unit.n_weights / GRID.n_weights() * math.exp(GROWTH * (allocation[unit.name] / unit.n_items - BEST[unit.name])) / GROWTH
        for unit in UNITS
    )


@dataclass
class ExactOracle:
    """What moves over the bracket are worth, exactly, plus an offset that changes from look to look."""

    offsets: tuple[float, ...] = (0.0,)
    n_windows: int = N_WINDOWS
    is_rich: bool = True
    asked: list[tuple[dict[str, int], float, int, int]] = field(default_factory=list)

    def __call__(self, allocation, bracket, start, n_windows):
        offset = self.offsets[len(self.asked) % len(self.offsets)]
        self.asked.append((dict(allocation), bracket, start, n_windows))
        here, restoring, removing = score(allocation), {}, {}
        for i, unit in enumerate(UNITS):
            n_levels = max(1, round(bracket * unit.n_items / STEP))
            low = max(0, allocation[unit.name] - n_levels * STEP)
            high = min(GRID.levels[unit.name].highest, allocation[unit.name] + n_levels * STEP)
            noise = offset * (-1) ** i * unit.n_weights / GRID.n_weights()
            for level, values in ((low, restoring), (high, removing)):
                if level != allocation[unit.name]:
                    n_moved = (level - allocation[unit.name]) / STEP
                    values[unit.name] = (score({**allocation, unit.name: level}) - here) / n_moved + noise * STEP / unit.n_items
        return MoveValues(restoring, removing, N_TOKENS)

    def affords(self, n_windows, n_times=1):
        return self.is_rich


def build(oracle, n_target=N_TARGET, **settings):
    space = SearchSpace(GRID, Target.in_weights(GRID, n_target), move_values=oracle)
    return Gradient(**settings).build(space, 0, None), space


@dataclass
class Race:
    """Races proposals on the exact score; the best takes the place of the incumbent when it is better."""

    score_of: object = score
    incumbent: Candidate | None = None
    n_raced: int = 0

    def run(self, proposer, n=4):
        proposals = proposer.ask(n)
        candidates = [
            Candidate(self.n_raced + i, "main", p, State.COMPLETE, self.score_of(p.allocation), 8, p.proposal_tokens)
            if p.allocation
            else Candidate(self.n_raced + i, "main", p, State.FAILED, n_tokens=p.proposal_tokens, reason=p.failure)
            for i, p in enumerate(proposals)
        ]
        self.n_raced += len(candidates)
        held = math.inf if self.incumbent is None else self.incumbent.score
        leader = min((c for c in candidates if c.score is not None), key=lambda c: c.score, default=None)
        if leader and leader.score < held:
            gain = 0.0 if self.incumbent is None else held - leader.score
            self.incumbent = Candidate(**{**vars(leader), "gain": gain})
            candidates[candidates.index(leader)] = self.incumbent
        proposer.tell(candidates)
        return proposals


def radius(space, parent, child):
    """The largest change of a unit's sparsity."""
    before, after = space.grid.sparsities(parent), space.grid.sparsities(child)
    return max(abs(after[name] - before[name]) for name in before)


def uniform(space):
    return space.project(dict.fromkeys(BEST, space.target_sparsity))


def test_a_few_rounds_reach_the_minimum():
    proposer, space = build(ExactOracle())
    race = Race()
    for _ in range(8):
        race.run(proposer)
    start, least = score(uniform(space)), score(space.project(BEST))
    assert start > 1.5 * least
    assert race.incumbent.score - least < 0.01 * (start - least)
    distance = sum(abs(race.incumbent.allocation[unit.name] - BEST[unit.name] * unit.n_items) for unit in UNITS)
    assert distance < 0.03 * GRID.n_weights()


def test_one_long_step_from_exact_values_is_the_minimum_on_the_budget():
    """All units that are at no end of the grid have one marginal cost: they are equally far from `BEST`."""
    n_target = math.ceil(0.55 * GRID.n_weights())
    oracle = ExactOracle()
    proposer, space = build(oracle, n_target, radius=1.0, bracket=0.02, factors=[1.0])
    (proposal,) = proposer.ask(4)
    distances = [
        proposal.allocation[unit.name] / unit.n_items - BEST[unit.name]
        for unit in UNITS
        if 0 < proposal.allocation[unit.name] < GRID.levels[unit.name].highest
    ]
    assert len(distances) >= 12
    # marginal costs below a tenth of the median count as that much
    floored = math.log(10) / GROWTH
    assert max(distances) - min(distances) < 0.02 or max(distances) - min(distances) < floored
    assert sorted(distances)[len(distances) // 2] - min(distances) < 0.03
    assert score(proposal.allocation) < 0.9 * score(uniform(space))


def test_steps_stay_within_their_radius_and_on_the_budget():
    proposer, space = build(ExactOracle(), radius=0.1, factors=[0.5, 1.0, 2.0])
    parent = uniform(space)
    reached = sorted(radius(space, parent, proposal.allocation) for proposal in proposer.ask(4))
    # rounding to the grid and to the budget moves a unit by less than two levels
    assert reached == [pytest.approx(expected, abs=2 * STEP / min(SIZES.values())) for expected in (0.05, 0.1, 0.2)]
    for proposal in proposer.ask(4):
        space.grid.check(proposal.allocation)
        assert 0 <= GRID.n_removed_weights(proposal.allocation) - N_TARGET < STEP


def brackets(oracle):
    return [bracket for _, bracket, _, _ in oracle.asked]


def test_the_radius_halves_after_a_failure_and_is_that_of_the_winner_after_a_success():
    oracle = ExactOracle()
    proposer, space = build(oracle, radius=0.2, bracket=0.25, factors=[0.5, 1.0])
    # whoever goes least far wins the first race, and nobody the next two
    nearest = Race(lambda allocation: radius(space, uniform(space), allocation))
    nearest.run(proposer)
    stuck = Race(lambda allocation: 1.0, nearest.incumbent, nearest.n_raced)
    stuck.incumbent = Candidate(**{**vars(nearest.incumbent), "score": 0.0})
    for _ in range(3):
        assert stuck.run(proposer)
    assert brackets(oracle) == pytest.approx([0.25 * r for r in (0.2, 0.1, 0.05, 0.025)])


def test_the_radius_stays_while_others_fail_or_win():
    oracle = ExactOracle()
    proposer, space = build(oracle)
    for i, shift in enumerate((0.05, 0.1)):
        proposer.ask(1)
        allocation = space.project({u.name: space.target_sparsity + shift * (-1) ** n for n, u in enumerate(GRID.units)})
        won = Candidate(2 * i, "main", Proposal(allocation, "random"), State.COMPLETE, 1.0, 8, gain=0.5)
        proposer.tell([won, Candidate(2 * i + 1, "main", Proposal(uniform(space), "random"), State.STOPPED, 2.0, 8)])
    proposer.ask(1)
    assert brackets(oracle) == [0.025] * 3


def test_where_no_step_is_new_smaller_ones_are_tried_and_no_tokens_are_lost():
    oracle = ExactOracle()
    proposer, _ = build(oracle, factors=[1.0])
    (first,) = proposer.ask(1)
    (second,) = proposer.ask(1)
    assert second.operator == "radius 0.025"
    n_tokens = first.proposal_tokens + second.proposal_tokens
    asked = len(oracle.asked)
    assert n_tokens == asked * first.proposal_tokens
    while proposer.ask(1):
        pass
    n_looks = len(oracle.asked)
    assert proposer.ask(1) == []
    assert len(oracle.asked) == n_looks, "a place that was looked at often enough costs nothing more"


def test_values_that_are_no_numbers_count_as_unknown():
    class Broken(ExactOracle):
        def __call__(self, *arguments):
            values = super().__call__(*arguments)
            name = UNITS[0].name
            return replace(values, restoring={**values.restoring, name: math.nan}, removing={**values.removing, name: math.inf})

    proposer, space = build(Broken())
    for proposal in proposer.ask(4):
        space.grid.check(proposal.allocation)


def test_values_at_one_place_are_averaged():
    """Errors of two looks that cancel leave the steps of exact values."""
    steps = []
    for offsets in ((0.0,), (3.0, -3.0)):
        proposer, _ = build(ExactOracle(offsets), factors=[1.0])
        (first,) = proposer.ask(1)
        proposer.tell([Candidate(0, "main", first, State.STOPPED, 9.0, 8)])
        (second,) = proposer.ask(1)
        steps.append((first.allocation, second.allocation))
    assert steps[0][0] != steps[1][0]
    assert steps[0][1] == steps[1][1]


def test_every_look_takes_the_windows_that_follow():
    oracle = ExactOracle()
    proposer, _ = build(oracle, n_windows=8)
    race = Race()
    for _ in range(4):
        race.run(proposer)
    assert [(start, n) for _, _, start, n in oracle.asked] == [(0, 8), (8, 8), (16, 8), (4, 8)]


def test_it_looks_where_the_incumbent_is_whoever_proposed_it():
    oracle = ExactOracle()
    proposer, space = build(oracle)
    proposer.ask(1)
    found = space.project({name: 0.5 * BEST[name] + 0.3 for name in BEST})
    proposer.tell([Candidate(7, "main", Proposal(found, "random"), State.COMPLETE, 0.1, 8, gain=0.0)])
    assert {p.parents for p in proposer.ask(4)} == {(7,)}
    assert [allocation for allocation, *_ in oracle.asked] == [uniform(space), found]


def test_the_tokens_of_a_look_are_on_the_first_of_its_proposals():
    proposer, _ = build(ExactOracle())
    proposals = proposer.ask(4)
    assert len(proposals) >= 2
    assert [p.proposal_tokens for p in proposals] == [N_TOKENS, *[0] * (len(proposals) - 1)]


def test_no_step_is_proposed_twice():
    proposer, _ = build(ExactOracle((3.0, -2.0, 5.0, -4.0)))
    race, seen = Race(), []
    for _ in range(12):
        seen += [tuple(p.allocation.values()) for p in race.run(proposer)]
    assert len(seen) == len(set(seen)) > 8


@pytest.mark.parametrize("share", [0.02, 0.98])
def test_at_the_ends_of_the_grid_no_level_is_illegal_and_the_score_still_falls(share):
    oracle = ExactOracle()
    proposer, space = build(oracle, math.ceil(share * GRID.n_weights()))
    race = Race()
    for _ in range(6):
        for proposal in race.run(proposer):
            if not proposal.allocation:
                continue
            space.grid.check(proposal.allocation)
            assert 0 <= GRID.n_removed_weights(proposal.allocation) - space.target.n_weights < STEP
    ends = [
        level in (0, GRID.levels[unit.name].highest)
        for unit, level in zip(UNITS, race.incumbent.allocation.values(), strict=True)
    ]
    assert sum(ends) >= 3
    assert race.incumbent.score < score(uniform(space))


def test_gradients_that_lead_to_no_new_step_are_paid_for():
    oracle = ExactOracle()
    proposer, space = build(oracle, GRID.n_weights() - 4)
    proposer.tell([Candidate(0, "main", Proposal(uniform(space), "test"), State.COMPLETE, 1.0, 8, gain=0.0)])
    (failed,) = proposer.ask(4)
    assert (failed.allocation, failed.failure) == (None, "every step was proposed before")
    assert failed.proposal_tokens == len(oracle.asked) * N_TOKENS > 0


def test_it_needs_gradients():
    with pytest.raises(ConfigError, match="needs gradients of the score, which this search does not offer"):
        Gradient().build(SearchSpace(GRID, Target.in_weights(GRID, N_TARGET)), 0, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_windows": 0},
        {"radius": 0.0},
        {"radius": 1.5},
        {"factors": []},
        {"factors": [1.0, 0.0]},
        {"bracket": -0.1},
        {"memory": 1.0},
        {"radius": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=r"gradient proposer .* got "):
        Gradient(**changes)


def test_without_the_tokens_for_gradients_at_a_new_place_there_is_no_step():
    oracle = ExactOracle(is_rich=False)
    proposer, _ = build(oracle, factors=[1.0])
    assert (proposer.ask(1), oracle.asked) == ([], [])
    oracle.is_rich = True
    (first,) = proposer.ask(1)
    oracle.is_rich = False
    # The values that were taken here still serve.
    proposer.tell([Candidate(0, "main", first, State.STOPPED, 1.0)])
    (second,) = proposer.ask(1)
    assert (second.proposal_tokens, len(oracle.asked)) == (0, 1)
    proposer.tell([Candidate(1, "main", second, State.COMPLETE, 0.5, gain=0.5)])
    assert (proposer.ask(1), len(oracle.asked)) == ([], 1)
