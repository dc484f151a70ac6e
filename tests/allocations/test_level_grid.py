import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_turn import in_turn

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.levels import Levels
from selfprune.allocations.projection import project
from selfprune.allocations.unit import Unit, n_removed_weights, sparsity_of
from selfprune.errors import AllocationError

finite = st.floats(allow_nan=False, allow_infinity=False)
near_unit = st.floats(-0.5, 1.5)


@st.composite
def unit_lists(draw, max_weights_per_item=1):
    sizes = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=12))
    return [Unit(f"layers.{i}", i, "w", n, draw(st.integers(1, max_weights_per_item))) for i, n in enumerate(sizes)]


@st.composite
def grids(draw):
    """Grids whose steps are all equal in weights."""
    return LevelGrid.with_constant_step(draw(unit_lists()), draw(st.floats(1e-3, 1.0)), draw(st.floats(0.05, 1.0)))


@st.composite
def uneven_grids(draw):
    """Grids with steps of all sizes, as structured units and patterns have."""
    units = draw(unit_lists(max_weights_per_item=300))
    if draw(st.booleans()):
        return LevelGrid.with_single_level(units, draw(st.floats(0.1, 0.9)))
    return LevelGrid.with_constant_step(units, draw(st.floats(1e-3, 1.0)))


def reachable(grid):
    return sum(levels.saved[-1] for levels in grid.levels.values())


def steps(grid):
    """Unit name -> items between levels, and how many such steps there are."""
    return {name: (levels.step, levels.n_steps) for name, levels in grid.levels.items()}


@st.composite
def problems(draw, grid=None, wish=near_unit):
    grid = draw(grids() if grid is None else grid)
    wishes = {unit.name: draw(wish) for unit in grid.units}
    return grid, wishes, draw(st.integers(0, reachable(grid)))


def steps_that_can_come_back(grid, allocation):
    return [grid.step_weights(unit) for unit in grid.units if allocation[unit.name] > 0]


@given(problems())
def test_a_projected_allocation_meets_the_target_by_less_than_one_step(problem):
    grid, wishes, target = problem
    allocation = project(wishes, grid.levels, target)
    grid.check(allocation)
    assert 0 <= grid.n_removed_weights(allocation) - target < min(grid.step_weights(unit) for unit in grid.units)


@given(problems(grid=uneven_grids()))
def test_with_unequal_steps_no_unit_could_give_one_back(problem):
    grid, wishes, target = problem
    allocation = project(wishes, grid.levels, target)
    grid.check(allocation)
    surplus = grid.n_removed_weights(allocation) - target
    assert surplus >= 0
    assert all(surplus < step for step in steps_that_can_come_back(grid, allocation))


def test_the_surplus_is_less_than_any_item_that_goes_but_not_than_a_cheaper_one_that_stays():
    units = [Unit("heads", 0, "heads", 8, weights_per_item=64), Unit("up", 0, "up", 640)]
    grid = LevelGrid.with_constant_step(units, 0.05)
    assert [grid.step_weights(unit) for unit in units] == [64, 25]
    heads_first = {"heads": 1.0, "up": -1.0}
    assert project(heads_first, grid.levels, 460) == {
        "heads": 8,
        "up": 0,
    }  # seven heads with 25 weights would do


@given(problems(wish=finite))
def test_any_finite_wish_meets_the_target(problem):
    grid, wishes, target = problem
    allocation = project(wishes, grid.levels, target)
    grid.check(allocation)
    assert 0 <= grid.n_removed_weights(allocation) - target < min(grid.step_weights(unit) for unit in grid.units)


@given(problems())
def test_projecting_again_changes_nothing(problem):
    grid, wishes, target = problem
    allocation = project(wishes, grid.levels, target)
    assert project(grid.sparsities(allocation), grid.levels, target) == allocation


@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_wishes_does_not_matter(problem, random):
    grid, wishes, target = problem
    shuffled = list(wishes.items())
    random.shuffle(shuffled)
    assert list(project(dict(shuffled), grid.levels, target).items()) == list(project(wishes, grid.levels, target).items())


@given(problems(), st.floats(-3, 3))
def test_what_all_wishes_have_in_common_does_not_matter(problem, shift):
    grid, wishes, target = problem
    shifted = project({name: wish + shift for name, wish in wishes.items()}, grid.levels, target)
    moved = project(wishes, grid.levels, target)
    assert all(abs(shifted[unit.name] - moved[unit.name]) <= grid.levels[unit.name].step for unit in grid.units)


@given(problems())
def test_wishes_near_the_budget_are_met_to_within_a_step_and_a_weight(problem):
    grid, wishes, _ = problem
    clipped = {unit.name: min(max(wishes[unit.name], 0), grid.levels[unit.name].highest / unit.n_items) for unit in grid.units}
    target = math.floor(sum(clipped[unit.name] * unit.n_items for unit in grid.units))
    allocation = project(clipped, grid.levels, target)
    assert all(
        abs(allocation[unit.name] - clipped[unit.name] * unit.n_items) < grid.levels[unit.name].step + 1 + 1e-3
        for unit in grid.units
    )


@given(problems(grid=uneven_grids()))
def test_both_ends_are_reachable(problem):
    grid, wishes, _ = problem
    assert project(wishes, grid.levels, 0) == {unit.name: 0 for unit in grid.units}
    assert project(wishes, grid.levels, reachable(grid)) == {unit.name: grid.levels[unit.name].highest for unit in grid.units}


UNITS = [Unit("a", 0, "w", 100), Unit("b", 1, "w", 300)]
GRID = LevelGrid.with_constant_step(UNITS, fraction_of_smallest=0.05)


def test_a_genome_is_in_the_order_of_the_units_however_the_allocation_was_put_together():
    assert GRID.genome({"a": 5, "b": 10}) == GRID.genome({"b": 10, "a": 5}) == (5, 10)


@given(grids(), st.data(), st.floats(0, 1))
def test_a_bracket_moves_every_unit_by_the_sparsity_or_one_level_within_the_grid(grid, data, sparsity):
    allocation = {name: data.draw(st.sampled_from(levels.items)) for name, levels in grid.levels.items()}
    below, above = grid.bracket(allocation, sparsity)
    for unit in grid.units:
        step, here = grid.levels[unit.name].step, allocation[unit.name]
        assert 0 <= below[unit.name] <= here <= above[unit.name] <= grid.levels[unit.name].highest
        for end, limit in ((below[unit.name], 0), (above[unit.name], grid.levels[unit.name].highest)):
            assert end % step == 0
            moved = abs(end - here)
            assert (
                end == limit
                or moved == step >= sparsity * unit.n_items - step
                or abs(moved - sparsity * unit.n_items) <= step / 2
            )


def test_more_wished_is_more_given():
    assert project({"a": 0.2, "b": 0.6}, GRID.levels, 200) == {"a": 20, "b": 180}
    assert project({"a": 0.0, "b": 0.4}, GRID.levels, 200) == {"a": 20, "b": 180}


def test_the_largest_remainder_is_rounded_up_first():
    assert project({"a": 0.52, "b": 0.51}, GRID.levels, 205) == {"a": 50, "b": 155}
    assert project({"a": 0.54, "b": 151 / 300}, GRID.levels, 205) == {"a": 55, "b": 150}


@in_turn("wish", [math.nan, math.inf, -math.inf])
def test_a_wish_that_is_not_finite_is_refused_by_name(wish):
    with pytest.raises(AllocationError, match=r"must be finite, got .* for b"):
        project({"a": 0.5, "b": wish}, GRID.levels, 200)


@pytest.mark.parametrize("target", [-1, 401])
def test_a_target_out_of_reach_is_refused_with_what_is_reachable(target):
    with pytest.raises(AllocationError, match="allow 0 to 400;"):
        project({"a": 0.5, "b": 0.5}, GRID.levels, target)


def test_a_grid_with_a_highest_sparsity_refuses_more():
    grid = LevelGrid.with_constant_step(UNITS, 0.05, max_sparsity=0.5)
    assert project({"a": 1.0, "b": 0.0}, grid.levels, 200) == {"a": 50, "b": 150}
    with pytest.raises(AllocationError, match=r"lower budget.sparsity or raise search.max_sparsity"):
        project({"a": 0.5, "b": 0.5}, grid.levels, 201)


@given(unit_lists(), st.floats(1e-3, 1.0))
def test_levels_are_a_constant_number_of_weights_apart(units, fraction):
    grid = LevelGrid.with_constant_step(units, fraction)
    (step,) = {grid.step_weights(unit) for unit in units}
    smallest = min(unit.n_weights for unit in units)
    assert step == max(1, math.floor(fraction * smallest + 1e-6))
    assert all(unit.n_items - step < grid.levels[unit.name].highest <= unit.n_items for unit in units)


def test_a_step_is_a_whole_number_of_items():
    units = [Unit("head", 0, "heads", 8, weights_per_item=64), Unit("channel", 0, "channels", 100, weights_per_item=10)]
    grid = LevelGrid.with_constant_step(units, fraction_of_smallest=0.25)
    assert steps(grid) == {"head": (2, 4), "channel": (12, 8)}
    assert [grid.step_weights(unit) for unit in units] == [128, 120]


def test_rounding_errors_cost_no_level():
    units = [Unit("a", 0, "w", 100)]
    assert 0.29 * 100 < 29
    assert steps(LevelGrid.with_constant_step(units, 0.29)) == {"a": (29, 3)}
    assert steps(LevelGrid.with_constant_step(units, 0.01, max_sparsity=0.29)) == {"a": (1, 29)}


def test_a_single_level_is_dense_or_the_fraction():
    grid = LevelGrid.with_single_level(UNITS, 0.5)
    assert project({"a": 0.5, "b": 0.5}, grid.levels, 200) == {"a": 50, "b": 150}
    assert project({"a": 0.0, "b": 0.5}, grid.levels, 150) == {"a": 0, "b": 150}
    with pytest.raises(AllocationError, match="allow 0 to 200"):
        project({"a": 0.5, "b": 0.5}, grid.levels, 201)


@pytest.mark.parametrize("make", [LevelGrid.with_constant_step, LevelGrid.with_single_level])
def test_a_grid_without_units_is_refused(make):
    with pytest.raises(AllocationError, match="at least one unit"):
        make([], 0.5)


@in_turn(
    ("allocation", "message"),
    [
        ({"a": 0, "b": 0, "bb": 0}, "'bb', which this model lacks; its units, nearest first: b, a"),
        ({"a": 0}, "b has none; add it"),
        ({"a": 3, "b": 0}, "a has 21 levels from 0 to 100 items, and none at 3, to which 5 is nearest"),
        ({"a": -5, "b": 0}, "none at -5, to which 0 is nearest"),
        ({"a": 0, "b": 305}, "none at 305, to which 300 is nearest"),
    ],
)
def test_an_allocation_off_the_grid_is_refused(allocation, message):
    with pytest.raises(AllocationError, match=message):
        GRID.check(allocation)


def test_sparsities_are_exact():
    allocation = {"a": 25, "b": 225}
    GRID.check(allocation)
    assert GRID.sparsities(allocation) == {"a": 0.25, "b": 0.75}
    assert GRID.n_removed_weights(allocation) == 250
    assert GRID.sparsity(allocation) == 250 / 400


def test_a_unit_weighs_items_times_weights():
    assert Unit("a", 0, "heads", 8, weights_per_item=64).n_weights == 512
    with pytest.raises(dataclasses.FrozenInstanceError):
        UNITS[0].n_items = 3


@st.composite
def cost_problems(draw):
    """A grid whose units save whatever a table or a price per item says, with plateaus and leaps, and a target in reach."""
    grid = draw(st.one_of(grids(), uneven_grids()))
    costs = {}
    for unit in grid.units:
        if draw(st.booleans()):
            costs[unit.name] = grid.levels[unit.name].priced(draw(st.integers(1, 10**6)))
        else:
            gains = draw(st.lists(st.integers(0, 10**9), min_size=min(5, grid.levels[unit.name].n_steps), max_size=5))
            savings = [0]
            for i in range(grid.levels[unit.name].n_steps):
                savings.append(savings[-1] + (gains[i % len(gains)] if gains else 0))
            costs[unit.name] = grid.levels[unit.name].useful(savings)
    highest = sum(levels.saved[-1] for levels in costs.values())
    return grid, costs, {unit.name: draw(near_unit) for unit in grid.units}, draw(st.integers(0, highest))


def saved(allocation, costs):
    return sum(costs[name].saved_at(level) for name, level in allocation.items())


@given(cost_problems())
def test_any_cost_is_met_and_no_unit_could_give_a_level_back(problem):
    grid, costs, wishes, target = problem
    allocation = project(wishes, costs, target)
    grid.check(allocation)
    surplus = saved(allocation, costs) - target
    assert surplus >= 0
    for unit in grid.units:
        if allocation[unit.name] > 0:
            one_less = allocation | {unit.name: grid.levels[unit.name].previous(allocation[unit.name])}
            assert saved(one_less, costs) < target, "a level that is not needed, or saves nothing, was taken"


@given(cost_problems())
def test_projecting_again_changes_nothing_by_any_cost(problem):
    grid, costs, wishes, target = problem
    allocation = project(wishes, costs, target)
    assert project(grid.sparsities(allocation), costs, target) == allocation


@given(cost_problems())
def test_both_ends_of_any_cost_are_reachable(problem):
    _, costs, wishes, _ = problem
    highest = {name: cost.highest for name, cost in costs.items()}
    assert project(wishes, costs, 0) == dict.fromkeys(highest, 0)
    assert project(wishes, costs, saved(highest, costs)) == highest


@given(problems(), st.integers(0, 20))
def test_a_cost_in_proportion_to_the_weights_gives_the_same_allocation(problem, doublings):
    grid, wishes, target = problem
    costs = {unit.name: grid.levels[unit.name].priced(unit.weights_per_item << doublings) for unit in grid.units}
    assert project(wishes, costs, target << doublings) == project(wishes, grid.levels, target)


def test_dear_items_are_taken_where_few_of_them_save_the_target():
    dear = {"a": GRID.levels["a"].priced(30), "b": GRID.levels["b"].priced(1)}
    assert project({"a": 0.5, "b": 0.5}, dear, 1650) == {"a": 50, "b": 150}
    assert project({"a": 0.5, "b": 0.0}, dear, 1500) == {"a": 50, "b": 0}


def test_levels_that_save_nothing_are_left_alone():
    # nothing is saved up to a half, and nothing more from three quarters on
    of_a = Levels.even(100, 25, 4, 1).useful([0, 0, 8, 12, 12])
    of_b = Levels.even(300, 150, 2, 1).useful([0, 0, 20])
    assert project({"a": 0.3, "b": 0.0}, {"a": of_a, "b": of_b}, 0) == {"a": 0, "b": 0}
    assert project({"a": 0.3, "b": 0.0}, {"a": of_a, "b": of_b}, 5) == {"a": 50, "b": 0}
    assert project({"a": 1.0, "b": 0.0}, {"a": of_a, "b": of_b}, 12) == {"a": 75, "b": 0}
    assert project({"a": 0.0, "b": 1.0}, {"a": of_a, "b": of_b}, 5) == {"a": 0, "b": 300}


def test_a_cost_out_of_reach_is_refused_with_what_is_reachable():
    with pytest.raises(AllocationError, match="asks to save 801, but the levels of the units allow 0 to 800;"):
        project({"a": 0.5, "b": 0.5}, {name: levels.priced(2) for name, levels in GRID.levels.items()}, 801)


KINDS = [Unit("0.q", 0, "self_attn.q", 1000), Unit("0.k", 0, "self_attn.k", 400), Unit("0.up", 0, "mlp.up", 3000)]


def test_finer_levels_divide_the_constant_step():
    grid = LevelGrid.with_constant_step(KINDS, 0.05, finer={"self_attn.*": 2, "*.k": 4})
    assert steps(grid) == {"0.q": (10, 100), "0.k": (5, 80), "0.up": (20, 150)}
    assert LevelGrid.with_constant_step(KINDS, 0.05, finer={}) == LevelGrid.with_constant_step(KINDS, 0.05)


@given(unit_lists(), st.floats(1e-3, 1.0), st.dictionaries(st.integers(0, 2), st.integers(1, 6), max_size=3), st.data())
def test_units_of_unequal_levels_still_exchange_weights_exactly(units, fraction, divisors, data):
    units = [dataclasses.replace(unit, kind=f"kind{unit.block % 3}") for unit in units]
    finer = {f"*{i}": n for i, n in divisors.items() if any(unit.kind == f"kind{i}" for unit in units)}
    grid = LevelGrid.with_constant_step(units, fraction, finer=finer)
    coarse = {grid.levels[unit.name].step * divisors.get(unit.block % 3, 1) for unit in units if grid.levels[unit.name].n_steps}
    assert len(coarse) <= 1, "so many levels of any unit weigh as much as those of any other"
    wishes, target = {unit.name: data.draw(near_unit) for unit in units}, data.draw(st.integers(0, reachable(grid)))
    allocation = project(wishes, grid.levels, target)
    grid.check(allocation)
    surplus = grid.n_removed_weights(allocation) - target
    assert surplus >= 0
    assert all(surplus < step for step in steps_that_can_come_back(grid, allocation))
    assert project(grid.sparsities(allocation), grid.levels, target) == allocation


def test_a_glob_that_matches_no_unit_is_refused_with_the_kinds():
    with pytest.raises(
        AllocationError, match=r"'self_atn\.\*', which matches no kind .* nearest first: self_attn\.\w, self_attn"
    ):
        LevelGrid.with_constant_step(KINDS, 0.05, finer={"mlp.*": 2, "self_atn.*": 2})


def test_a_sparsity_is_of_weights_and_a_level_of_items():
    units = [Unit("heads", 0, "heads", 8, weights_per_item=64), Unit("channels", 0, "channels", 100, weights_per_item=3)]
    removed = {"heads": 2, "channels": 50}
    assert n_removed_weights(removed, units) == 2 * 64 + 50 * 3
    assert sparsity_of(removed, units) == (2 * 64 + 50 * 3) / (8 * 64 + 100 * 3)
    assert sparsity_of(removed, units[:1]) == 2 / 8
