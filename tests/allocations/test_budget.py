import json
import math
import re
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_turn import in_turn

from selfprune.allocations.budget import Budget, ContextCosts, Measure
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.projection import project
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Item, Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace


def grid_of(n_weights):
    return LevelGrid.with_constant_step([Unit("a", 0, "w", n_weights)], 0.05)


@in_turn("sparsity", [-0.1, 1.0, 1.2, 70, math.nan, math.inf])
def test_a_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(ConfigError, match=r"budget.sparsity must lie above 0 and below 1, got"):
        Budget(sparsity)


@in_turn(("sparsity", "n_weights", "n_target"), [(0.0, 7, 0), (0.5, 7, 4), (0.7, 1000, 700), (0.29, 100, 29), (0.1, 30, 3)])
def test_the_target_is_the_sparsity_rounded_up_to_a_weight(sparsity, n_weights, n_target):
    assert Target.of(Budget(sparsity), grid_of(n_weights), 0, all_tokens).n_saved == n_target


@given(st.integers(1, 10**9), st.floats(0, 0.99))
def test_the_target_is_the_least_number_that_reaches_the_sparsity(n_weights, sparsity):
    n_target = Target.of(Budget(sparsity), grid_of(n_weights), 0, all_tokens).n_saved
    assert sparsity * n_weights - 1e-5 <= n_target < sparsity * n_weights + 1


UNITS = [Unit("0.q", 0, "q", 1000), Unit("0.up", 0, "up", 3000), Unit("1.q", 1, "q", 1000), Unit("1.up", 1, "up", 3000)]
GRID = LevelGrid.with_constant_step(UNITS, 0.05)
N_PARAMETERS = 10_000
COSTS = ContextCosts(3 * 2000, {"0.q": 3, "1.q": 3})
WISHES = {"0.q": 0.9, "0.up": 0.2, "1.q": 0.4, "1.up": 0.6}
SLOW_UP = {"q": [[0, 1.0], [0.5, 1.0], [1, 0.5]], "up": [[0, 4.0], [1, 1.0]]}


def all_tokens(unit):
    return Fraction(1)


def a_quarter_of_up(unit):
    return Fraction(1, 4) if unit.kind == "up" else Fraction(1)


@pytest.fixture
def latency_table(tmp_path):
    """Writes a table and gives its path."""

    def call(seconds=SLOW_UP):
        path = tmp_path / "table.json"
        path.write_text(json.dumps({"seconds": seconds}))
        return str(path)

    return call


@pytest.fixture(params=Measure)
def budget(request, latency_table):
    """Makes a budget of every measure."""
    table = latency_table() if request.param is Measure.LATENCY else ""
    context = 100 if request.param is Measure.MEMORY else 0
    return lambda sparsity: Budget(sparsity, request.param, table, context=context, batch_size=2)


def share_saved(budget, allocation):
    """What an allocation saves of the whole, counted without the machinery under test."""
    sparsity = {unit.name: allocation[unit.name] / unit.n_items for unit in UNITS}
    if budget.measure is Measure.FLOPS:
        return sum(sparsity[u.name] * u.n_items * a_quarter_of_up(u) for u in UNITS) / (2 * 1000 + 2 * 3000 / 4)
    if budget.measure is Measure.LATENCY:
        seconds = {"q": lambda s: 1.0 - max(0.0, s - 0.5), "up": lambda s: 4.0 - 3.0 * s}
        return 1 - sum(seconds[unit.kind](sparsity[unit.name]) for unit in UNITS) / 10
    removed = sum(allocation.values())
    if budget.measure is Measure.MEMORY:
        return (removed + 2 * 3 * (allocation["0.q"] + allocation["1.q"])) / (N_PARAMETERS + 2 * 3 * 2000)
    return removed / (8000 if budget.measure is Measure.WEIGHTS else N_PARAMETERS)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.337, 0.5])
def test_a_projected_allocation_saves_the_share_of_its_measure_and_no_level_more(budget, sparsity):
    budget = budget(sparsity)
    target = Target.of(budget, GRID, N_PARAMETERS, a_quarter_of_up, COSTS)
    allocation = project(WISHES, target.levels, target.n_saved)
    GRID.check(allocation)
    assert target.is_met(allocation)
    assert share_saved(budget, allocation) >= sparsity - 1e-9
    for name, level in allocation.items():
        if level:
            fewer = allocation | {name: GRID.levels[name].previous(level)}
            assert not target.is_met(fewer)
            assert share_saved(budget, fewer) < sparsity
    assert project(GRID.sparsities(allocation), target.levels, target.n_saved) == allocation


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.45])
def test_the_uniform_allocation_gives_all_units_the_sparsity_that_meets_the_budget(budget, sparsity):
    budget = budget(sparsity)
    common = budget.uniform_sparsity(UNITS, N_PARAMETERS, COSTS)
    allocation = budget.uniform(UNITS, N_PARAMETERS, COSTS)
    assert all(abs(allocation[unit.name] - common * unit.n_items) < 1 for unit in UNITS)
    if budget.measure is Measure.FLOPS:
        assert common == sparsity
    assert share_saved(budget, allocation) == pytest.approx(sparsity, abs=1e-3)
    target = Target.of(budget, GRID, N_PARAMETERS, a_quarter_of_up, COSTS)
    assert target.is_met(
        {unit.name: GRID.levels[unit.name].items[1] * math.ceil(common * 20 * unit.n_items / 1000) for unit in UNITS}
    )
    # what proposers are told, where weights are counted, is the target itself
    assert target.n_weights == pytest.approx(sum(allocation.values()), abs=len(UNITS))


def test_weights_are_the_default_and_parameters_ask_for_a_share_of_the_whole_model():
    assert Budget().measure is Measure.WEIGHTS
    weights, parameters = (Target.of(Budget(0.5, measure), GRID, N_PARAMETERS, all_tokens) for measure in list(Measure)[:2])
    assert (weights.n_saved, weights.n_weights) == (4000, 4000)
    assert (parameters.n_saved, parameters.n_weights) == (5000, 5000)
    assert weights.levels == parameters.levels == GRID.levels


@given(st.fractions(Fraction(1, 100), 1, max_denominator=200), st.floats(0, 0.99))
def test_flops_are_counted_exactly_for_any_share_of_tokens(share, sparsity):
    target = Target.of(Budget(sparsity, Measure.FLOPS), GRID, 0, lambda unit: share if unit.kind == "up" else Fraction(1))
    dense = sum(2 * unit.n_items * (share if unit.kind == "up" else 1) for unit in UNITS) * share.denominator
    assert dense.denominator == 1
    assert sum(target.levels[unit.name].saved_at(unit.n_items) for unit in UNITS) == dense
    assert target.n_saved == math.ceil(sparsity * int(dense) - 1e-6)


def test_the_weights_of_a_dense_model_are_its_flops():
    target = Target.of(Budget(0.4, Measure.FLOPS), GRID, 0, all_tokens)
    assert project(WISHES, target.levels, target.n_saved) == project(WISHES, GRID.levels, 3200)


def test_a_pattern_saves_what_the_table_says_of_it(latency_table):
    grid = LevelGrid.with_single_level(UNITS, 0.5)
    table = latency_table({"q": [[0, 1.0], [0.5, 1.2]], "up": [[0, 4.0], [0.5, 2.0]]})
    target = Target.of(Budget(0.3, Measure.LATENCY, table), grid, 0, all_tokens)
    # the kernel of the pattern makes q no faster, so q stays dense whatever was wished
    assert project(WISHES, target.levels, target.n_saved) == {"0.q": 0, "0.up": 1500, "1.q": 0, "1.up": 1500}


@pytest.mark.parametrize(
    ("measure", "sparsity", "max_sparsity", "message"),
    [
        (Measure.WEIGHTS, 0.6, 0.5, r"weights of the units, but at most 0\.5 can be saved; .* raise search\.max_sparsity"),
        (
            Measure.PARAMETERS,
            0.81,
            1.0,
            r"of the model, .* at most 0\.8 can be saved; .*choose budget\.measure=WEIGHTS",
        ),
        (Measure.FLOPS, 0.6, 0.5, r"operations in the units, but at most 0\.5 can be saved"),
        (Measure.LATENCY, 0.71, 1.0, r"seconds of the units by budget\.latency_table, but at most 0\.7 can be saved"),
    ],
)
def test_a_share_out_of_reach_is_refused_with_what_can_be_reached(measure, sparsity, max_sparsity, message, latency_table):
    budget = Budget(sparsity, measure, latency_table() if measure is Measure.LATENCY else "")
    grid = LevelGrid.with_constant_step(UNITS, 0.05, max_sparsity)
    with pytest.raises(ConfigError, match=message):
        Target.of(budget, grid, N_PARAMETERS, all_tokens)
    if max_sparsity == 1.0:
        with pytest.raises(ConfigError, match=message.partition(";")[0]):
            budget.uniform(UNITS, N_PARAMETERS)


def test_flops_count_the_scores_of_heads_at_a_context():
    costs = ContextCosts(0, {}, {"0.q": 6, "1.q": 6})
    target = Target.of(Budget(0.5, Measure.FLOPS, context=100), GRID, 0, all_tokens, costs)
    assert (target.n_all, target.levels["0.q"].saved_at(1000)) == (2 * 8000 + 6 * 2000, (2 + 6) * 1000)


def test_a_speedup_is_that_of_the_whole_model(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"seconds": SLOW_UP, "seconds_outside": 2.0}))
    budget = Budget(measure=Measure.LATENCY, latency_table=str(path), speedup=1.5)
    assert budget.share(UNITS) == pytest.approx(12 * (1 - 1 / 1.5) / 10)
    target = Target.of(budget, GRID, 0, all_tokens)
    allocation = target.project(dict.fromkeys(WISHES, 0.5))
    seconds = sum(budget.table().seconds(unit, allocation[unit.name] / unit.n_items) for unit in UNITS)
    assert 12 / (2 + seconds) == pytest.approx(1.5, rel=0.02)
    assert budget.uniform_sparsity(UNITS, 0) == pytest.approx(0.4 * 10 / 6, abs=0.1)
    with pytest.raises(ConfigError, match=r"budget.speedup=9 asks for more than can be saved: of the seconds .* at most 0.7 can"):
        Target.of(replace(budget, speedup=9), GRID, 0, all_tokens)
    path.write_text(json.dumps({"seconds": SLOW_UP}))
    with pytest.raises(ConfigError, match="does not say what the model takes outside its units"):
        budget.share(UNITS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speedup": 1.5}, "counts for budget.measure=LATENCY only, got 1.5 with WEIGHTS"),
        ({"measure": Measure.MEMORY}, "of budget.context tokens, got 1 of 0; give both"),
        ({"measure": Measure.MEMORY, "context": 8, "batch_size": 0}, "got 0 of 8"),
        ({"context": 8}, "budget.context=8 counts for budget.measure=FLOPS and MEMORY only, got WEIGHTS"),
    ],
)
def test_options_of_other_measures_are_refused(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Budget(0.5, **changes)


def test_a_latency_table_and_the_measure_go_together(latency_table):
    with pytest.raises(ConfigError, match=r"LATENCY needs budget\.latency_table, got none; `python -m selfprune\.latency"):
        Budget(0.5, Measure.LATENCY)
    with pytest.raises(ConfigError, match=r"counts for budget\.measure=LATENCY only, got FLOPS"):
        Budget(0.5, Measure.FLOPS, latency_table())
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read"):
        Budget(0.5, Measure.LATENCY, "nowhere.json").check()
    with pytest.raises(ConfigError, match="but up has none"):
        Target.of(Budget(0.5, Measure.LATENCY, latency_table({"q": [[0, 1]]})), GRID, 0, all_tokens)


def test_a_search_space_projects_onto_its_own_budget(budget):
    target = Target.of(budget(0.3), GRID, N_PARAMETERS, a_quarter_of_up, COSTS)
    space = SearchSpace(GRID, target)
    assert space.project(WISHES) == project(WISHES, target.levels, target.n_saved)
    assert space.target.is_met(space.project(WISHES))
    assert not space.target.is_met(dict.fromkeys(WISHES, 0))
    assert space.target_sparsity == target.n_weights / 8000
    by_weights = SearchSpace(GRID, Target.in_weights(GRID, 2400))
    assert by_weights.project(WISHES) == project(WISHES, GRID.levels, 2400)
    assert [by_weights.target.is_met({**dict.fromkeys(WISHES, 0), "0.up": n}) for n in (2350, 2400)] == [False, True]


def test_tied_units_are_at_one_step_and_meet_the_budget():
    units = [Unit(f"{b}.{kind}", b, kind, n, w, item) for b in range(3) for kind, n, w, item in
             (("attn", 4, 90, Item.HEAD_GROUP), ("mlp", 60, 8, Item.CHANNEL))]  # fmt: skip
    wishes = {unit.name: 0.1 * i for i, unit in enumerate(units)}
    for whole, by_block in ((False, False), (True, True)):
        grid = LevelGrid.of_structures(units, 0.1, whole=whole)
        target = Target.of(Budget(0.4), grid, 0, all_tokens).tie(units, by_block)
        allocation = target.project(wishes)
        grid.check(allocation)
        assert target.is_met(allocation)
        groups = [[allocation[u.name] / u.n_items for u in units if (u.block if by_block else u.kind) == key]
                  for key in ((0, 1, 2) if by_block else ("attn", "mlp"))]  # fmt: skip
        assert all(len(set(shares)) == 1 for shares in groups)
    other = [*units[:-1], replace(units[-1], n_items=30)]
    with pytest.raises(ConfigError, match=r"search.plain=true gives 0.mlp, 1.mlp, 2.mlp and so on one level, but"):
        Target.of(Budget(0.4), LevelGrid.of_structures(other, 0.1), 0, all_tokens).tie(other, by_block=False)
