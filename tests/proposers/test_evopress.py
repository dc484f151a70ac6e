import math
from collections import Counter

import pytest
from small_space import GRID, SPACE, STEP, UNIFORM, UNITS

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.searches.evopress import EvoPress


def candidate(id_, allocation=None, gain=None, score=1.0):
    return Candidate(id_, "main", Proposal(allocation or UNIFORM, "someone"), State.COMPLETE, score, gain=gain)


def build(*told, space=SPACE, seed=0, **settings):
    proposer = EvoPress(**settings).build(space, seed, None)
    proposer.tell(list(told))
    return proposer


def moved(before, after):
    """Unit name -> levels that it gained, where it gained any."""
    return {name: (after[name] - before[name]) / STEP for name in before if after[name] != before[name]}


def with_spread(spread):
    return SPACE.project({unit.name: 0.6 + spread * (unit.block - 1.5) for unit in UNITS})


def test_children_make_the_published_number_of_swaps():
    # so many units that swaps hardly ever meet in one and cancel
    units = [Unit(f"layers.{b}.q", b, "q", 100) for b in range(60)]
    space, n_swaps = (
        SearchSpace(
            LevelGrid.with_constant_step(units, 0.05), Target.in_weights(LevelGrid.with_constant_step(units, 0.05), 3_600)
        ),
        Counter(),
    )
    parent = {unit.name: 60 for unit in units}
    for child in build(candidate(0, parent, gain=0.0), space=space).ask(270):
        gained = moved(parent, child.allocation)
        assert sum(gained.values()) == 0
        n_swaps[sum(map(abs, gained.values())) / 2] += 1
        assert (child.proposer, child.operator, child.parents) == ("evopress", "swap", (0,))
    # min(U{1..3}, U{1..3}) is 1, 2, 3 with odds 5 : 3 : 1
    assert set(n_swaps) <= {0, 1, 2, 3}
    for number, odds in ((1, 5), (2, 3), (3, 1)):
        assert abs(n_swaps[number] - 30 * odds) < 4 * math.sqrt(30 * odds)


def test_all_units_are_restored_and_pruned_alike():
    restored, pruned = Counter(), Counter()
    for child in build(candidate(0, gain=0.0), max_swaps=1).ask(480):
        ((up, _), (down, _)) = sorted(moved(UNIFORM, child.allocation).items(), key=lambda item: -item[1])
        restored[down] += 1
        pruned[up] += 1
    for counts in (restored, pruned):
        assert len(counts) == len(UNITS)
        assert all(abs(n - 30) < 5 * math.sqrt(30) for n in counts.values())


def test_at_the_ends_of_the_grid_a_swap_still_moves_one_level_each_way():
    full = {unit.name: GRID.levels[unit.name].highest if unit.block < 2 else 0 for unit in UNITS}
    space = SearchSpace(GRID, Target.in_weights(GRID, GRID.n_removed_weights(full)))
    for child in build(candidate(0, full, gain=0.0), space=space, max_swaps=1).ask(200):
        gained = moved(full, child.allocation)
        assert sorted(gained.values()) == [-1, 1]
        assert all(levels < 0 if ".0." in name or ".1." in name else levels > 0 for name, levels in gained.items())


@pytest.mark.parametrize("n_target", [0, GRID.n_removed_weights({unit.name: GRID.levels[unit.name].highest for unit in UNITS})])
def test_where_there_is_no_swap_children_equal_the_parent(n_target):
    for proposal in build(space=SearchSpace(GRID, Target.in_weights(GRID, n_target))).ask(3):
        assert GRID.n_removed_weights(proposal.allocation) == n_target


def test_units_of_finer_steps_stay_on_the_budget():
    grid = LevelGrid.with_constant_step(UNITS, 0.2, finer={"k": 4})
    space = SearchSpace(grid, Target.in_weights(grid, math.ceil(0.6 * grid.n_weights())))
    for proposal in build(space=space).ask(100):
        grid.check(proposal.allocation)
        assert 0 <= grid.n_removed_weights(proposal.allocation) - space.target.n_weights < 20


def test_before_the_first_heat_the_uniform_parent_runs_beside_its_children():
    proposer = build()
    for _ in range(2):
        first, *others = proposer.ask(10)
        assert (first.allocation, first.operator, first.parents) == (UNIFORM, "start", ())
        assert all(moved(UNIFORM, child.allocation) and child.operator == "swap" for child in others)
    proposer.tell([candidate(0, gain=0.0)])
    assert {child.operator for child in proposer.ask(10)} == {"swap"}


def test_whoever_takes_the_place_of_the_incumbent_becomes_the_parent_and_nobody_else():
    """As in algorithm 1, where a child must beat its parent; the scores of two races do not compare."""
    parent, better, worse = with_spread(0.05), with_spread(0.1), with_spread(-0.1)
    proposer = build(candidate(0, parent, gain=0.0))
    proposer.tell([candidate(1, worse, score=0.1), candidate(2, parent, score=2.0)])
    assert {child.parents for child in proposer.ask(5)} == {(0,)}
    assert all(sum(map(abs, moved(parent, child.allocation).values())) <= 6 for child in proposer.ask(5))
    proposer.tell([candidate(3, worse, score=3.0), candidate(4, better, gain=0.2, score=2.5), candidate(5, parent, score=2.7)])
    assert {child.parents for child in proposer.ask(5)} == {(4,)}
    assert all(sum(map(abs, moved(better, child.allocation).values())) <= 6 for child in proposer.ask(5))


def test_a_child_needs_a_swap():
    with pytest.raises(ConfigError, match=r"max_swaps of EvoPress must be at least 1, got 0; the published value is 3"):
        EvoPress(max_swaps=0)
