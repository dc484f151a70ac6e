import math
import random
from collections import Counter

import pytest
from small_space import GRID, SIZES, SPACE, STEP, UNIFORM, UNITS

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.target import Target
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.searches.evolutionary import Evolutionary, Group


def evopress(**changes):
    return Evolutionary(
        **{"n_parents": 1, "groups": [Group.UNIT], "max_shift": 0.0, "crossover_rate": 0.0, "perturb_rate": 0.0} | changes
    )


def candidate(id_, score, allocation=None, state=State.COMPLETE):
    if allocation is None:
        allocation = SPACE.project({unit.name: 0.6 + (0.01 * id_ if unit.kind == "q" else 0.0) for unit in UNITS})
    return Candidate(id_, "main", Proposal(allocation, "someone"), state, score)


def build(settings, *told, space=SPACE, seed=0):
    proposer = settings.build(space, seed, None)
    proposer.tell(list(told))
    return proposer


def moved(before, after):
    """Unit name -> levels that it gained, where it gained any."""
    return {name: (after[name] - before[name]) / STEP for name in before if after[name] != before[name]}


def test_the_published_mutation_swaps_single_levels_between_units():
    n_swaps = Counter()
    for seed in range(60):
        for child in build(evopress(), candidate(0, 1.0, UNIFORM), seed=seed).ask(5):
            gained = moved(UNIFORM, child.allocation)
            assert sum(gained.values()) == 0
            assert all(levels == int(levels) for levels in gained.values())
            assert 1 <= sum(map(abs, gained.values())) / 2 <= 3
            n_swaps[sum(map(abs, gained.values())) / 2] += 1
            assert (child.operator, child.parents) == ("swap", (0,))
    # min(U{1..3}, U{1..3}) is 1, 2, 3 with odds 5 : 3 : 1; a few swaps meet in one unit and cancel.
    assert n_swaps[1] > n_swaps[2] > n_swaps[3] > 0


def test_at_the_ends_of_the_grid_a_swap_still_moves_one_level_each_way():
    full = {unit.name: GRID.levels[unit.name].highest if unit.block < 2 else 0 for unit in UNITS}
    space = SearchSpace(GRID, Target.in_weights(GRID, GRID.n_removed_weights(full)))
    for seed in range(60):
        for child in build(evopress(max_swaps=1), candidate(0, 1.0, full), space=space, seed=seed).ask(5):
            gained = moved(full, child.allocation)
            assert sorted(gained.values()) == [-1, 1]
            assert all(levels < 0 if ".0." in name or ".1." in name else levels > 0 for name, levels in gained.items())


def test_the_sum_of_weights_never_changes_under_swaps_of_units():
    parent = candidate(0, 1.0, UNIFORM)
    for max_shift in (0.0, 0.3, 1.0):
        for child in build(evopress(max_shift=max_shift), parent).ask(40):
            assert GRID.n_removed_weights(child.allocation) == GRID.n_removed_weights(UNIFORM)


@pytest.mark.parametrize("group", [Group.BLOCK, Group.KIND])
def test_a_swap_of_groups_moves_whole_groups(group):
    parent, n_changed = candidate(0, 1.0, UNIFORM), 0
    for child in build(evopress(groups=[group], max_shift=0.3, max_swaps=1), parent).ask(20):
        changes = {name: child.allocation[name] / GRID.units[i].n_items - 0.6 for i, name in enumerate(UNIFORM)}
        changed = {
            (unit.block if group is Group.BLOCK else unit.kind): round(math.copysign(1, changes[unit.name]))
            for unit in UNITS
            if abs(changes[unit.name]) > 2 * STEP / unit.n_items
        }
        n_changed += len(changed)
        assert sorted(changed.values()) in ([], [-1], [1], [-1, 1])
        assert 0 <= GRID.n_removed_weights(child.allocation) - SPACE.target.n_weights < STEP
    assert n_changed >= 20


def test_only_the_best_complete_candidates_become_parents():
    told = [candidate(i, score) for i, score in enumerate([5.0, 1.0, 4.0, 2.0, 3.0])]
    told += [candidate(5, 0.1, state=State.STOPPED), Candidate(6, "main", Proposal(None, "x"), State.FAILED)]
    proposer = build(Evolutionary(n_parents=2), *told)
    parents = Counter(parent for child in proposer.ask(60) for parent in child.parents)
    assert set(parents) == {1, 3}
    proposer.tell([candidate(7, 1.5)])
    assert {parent for child in proposer.ask(60) for parent in child.parents} == {1, 7}


def test_children_of_nobody_come_of_the_uniform_allocation():
    for child in build(evopress(max_swaps=1)).ask(10):
        assert (child.operator, child.parents) == ("swap", ())
        assert sorted(moved(UNIFORM, child.allocation).values()) == [-1, 1]


def test_operators_come_at_their_rates():
    settings = Evolutionary(crossover_rate=0.25, perturb_rate=0.5, n_parents=3)
    told = [candidate(i, 1.0 + i, SPACE.project(random_wishes(i))) for i in range(3)]
    operators = Counter(child.operator for child in build(settings, *told).ask(400))
    expected = {"crossover": 100, "perturb": 200, "swap": 100}
    assert all(abs(operators[name] - n) < 5 * math.sqrt(n) for name, n in expected.items())


GROUPS = {"block": range(4), "kind": list(SIZES)}


def random_wishes(seed):
    rng = random.Random(seed)
    return {unit.name: rng.uniform(0.45, 0.75) for unit in UNITS}


def test_crossover_takes_whole_blocks_or_kinds_of_either_parent():
    parents = [candidate(i, 1.0, SPACE.project(random_wishes(i))) for i in range(2)]
    children = build(Evolutionary(crossover_rate=1.0, perturb_rate=0.0, n_parents=2), *parents).ask(10)
    partitions = [[[u for u in UNITS if getattr(u, part) == value] for value in values] for part, values in GROUPS.items()]
    ours = [GRID.sparsities(parent.allocation) for parent in parents]
    n_mixed = 0
    for child in children:
        assert set(child.parents) == {0, 1}
        sparsities = GRID.sparsities(child.allocation)
        shifts = [sparsities[UNITS[0].name] - parent[UNITS[0].name] for parent in ours]

        def comes_of(parent, group, shift, sparsities=sparsities):
            return all(abs(sparsities[u.name] - parent[u.name] - shift) < STEP / u.n_items + STEP / 400 for u in group)

        # All are shifted alike to be put on the budget.
        assert any(
            all(any(comes_of(parent, group, shift) for parent in ours) for group in groups)
            for groups in partitions
            for shift in shifts
        )
        n_mixed += not any(comes_of(parent, UNITS, shift) for parent, shift in zip(ours, shifts, strict=True))
    assert n_mixed >= 5


def test_no_child_is_proposed_twice_and_none_that_was_told():
    told = candidate(0, 1.0, UNIFORM)
    proposer = build(evopress(max_swaps=1), told)
    children = [tuple(child.allocation.items()) for child in proposer.ask(300)]
    assert len(set(children)) == len(children)
    # 16 · 15 ordered pairs is all there is.
    assert 200 < len(children) <= 240
    assert tuple(UNIFORM.items()) not in children


def test_a_grid_with_one_choice_leaves_nothing_to_propose():
    assert build(Evolutionary(), space=SearchSpace(GRID, Target.in_weights(GRID, 0))).ask(3)[1:] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"n_parents": 0},
        {"max_swaps": 0},
        {"groups": []},
        {"crossover_rate": -0.1},
        {"perturb_rate": 1.1},
        {"max_spread": 2.0},
        {"max_shift": -1.0},
        {"crossover_rate": 0.6, "perturb_rate": 0.6},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=r"(?s)got "):
        Evolutionary(**changes)
