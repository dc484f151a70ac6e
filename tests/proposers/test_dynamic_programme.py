import itertools
import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from analytic_oracle import AnalyticOracle
from hypothesis import given, settings
from hypothesis import strategies as st

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import AllocationError, ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.move_values import MoveValues
from selfprune.proposers.searches.dynamic_programme import DynamicProgramme, damage_curves, least_damage

SIZES = {"q": 400, "up": 1000, "down": 1003}
UNITS = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(3) for kind, n in SIZES.items()]
GRID = LevelGrid.with_constant_step(UNITS, 0.025)
UNBOUNDED = {"radii": [1.0]}


def make_space(oracle, sparsity=0.5, target=None, **changes):
    target = target or Target.in_weights(oracle.grid, math.ceil(sparsity * oracle.grid.n_weights()))
    return SearchSpace(oracle.grid, target, move_values=oracle, **changes)


def ask(space, n=99, **settings_):
    return DynamicProgramme(**settings_).build(space, 0, None).ask(n)


def brute_force(damages, steps, n_steps):
    """The least total damage over all choices that save enough."""
    choices = itertools.product(*(range(len(of_unit)) for of_unit in damages))
    return min(
        (
            sum(damage[i] for damage, i in zip(damages, choice, strict=True))
            for choice in choices
            if sum(saved[i] for saved, i in zip(steps, choice, strict=True)) >= n_steps
        ),
        default=math.inf,
    )


CHOICES = st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 9)), min_size=1, max_size=5)


@settings(max_examples=150)
@given(st.lists(CHOICES, min_size=1, max_size=4), st.integers(0, 40))
def test_the_programme_equals_brute_force_for_any_damages(units, n_steps):
    damages = [np.array([damage for damage, _ in unit]) for unit in units]
    steps = [np.array([saved for _, saved in unit]) for unit in units]
    if n_steps > sum(saved.max() for saved in steps):
        with pytest.raises(AllocationError, match=r"must save \d+ steps of the budget, but can save at most"):
            least_damage(damages, steps, n_steps)
        return
    chosen = least_damage(damages, steps, n_steps)
    assert sum(saved[i] for saved, i in zip(steps, chosen, strict=True)) >= n_steps
    found = sum(damage[i] for damage, i in zip(damages, chosen, strict=True))
    assert found == pytest.approx(brute_force(damages, steps, n_steps), abs=1e-9)


def test_where_damages_are_not_convex_the_programme_beats_the_greedy():
    # The cheapest first step leads nowhere: one unit must go whole.
    damages = [np.array([0.0, 5.0, 5.5, 6.0]), np.array([0.0, 1.0, 4.0, 9.0])]
    assert least_damage(damages, [np.arange(4)] * 2, 3) == [3, 0]


@pytest.mark.parametrize("steepness", [1.0, 4.0])
@pytest.mark.parametrize("n_steps", [0, 7, 13, 30])
def test_convex_damages_are_solved_as_by_the_greedy(steepness, n_steps):
    rng = random.Random(n_steps)
    steps = [np.arange(11)] * 3
    damages = [rng.uniform(1, 3) * np.expm1(steepness * steps[0] / 10) for _ in steps]
    chosen = least_damage(damages, steps, n_steps)
    greedy = [0, 0, 0]
    for _ in range(n_steps):
        costs = [damage[i + 1] - damage[i] if i < 10 else math.inf for damage, i in zip(damages, greedy, strict=True)]
        greedy[costs.index(min(costs))] += 1
    assert chosen == greedy


def test_the_proposal_is_the_best_allocation_of_a_separable_score():
    # Exponential costs are what the log-linear curves can hold.
    units = [Unit(name, i, "w", 100) for i, name in enumerate("abcd")]
    oracle = AnalyticOracle(LevelGrid.with_constant_step(units, 0.1), dict(zip("abcd", [1.0, 1.9, 3.1, 0.6], strict=True)), 3.0)
    (proposal,) = ask(make_space(oracle), bracket=0.0, **UNBOUNDED)
    best = min(
        (levels for levels in itertools.product(range(0, 101, 10), repeat=4) if sum(levels) == 200),
        key=lambda levels: oracle.score(dict(zip("abcd", levels, strict=True))),
    )
    assert proposal.allocation == dict(zip("abcd", best, strict=True))


def test_units_of_all_sizes_trade_at_one_price():
    oracle = AnalyticOracle.of(GRID)
    (proposal,) = ask(make_space(oracle), **UNBOUNDED)
    for restored, pruned in itertools.permutations(UNITS, 2):
        moved = dict(proposal.allocation)
        moved[restored.name] -= 2 * GRID.levels[restored.name].items[1]
        moved[pruned.name] += 2 * GRID.levels[pruned.name].items[1]
        if moved[restored.name] >= 0 and moved[pruned.name] <= GRID.levels[pruned.name].highest:
            assert oracle.score(moved) > oracle.score(proposal.allocation)


def test_every_radius_is_kept_and_wider_ones_do_better():
    oracle = AnalyticOracle.of(GRID, steepness=2.0)
    space = make_space(oracle)
    proposals = ask(space, radii=[0.05, 0.1, 0.2, 1.0])
    assert [proposal.operator for proposal in proposals] == ["radius 0.05", "radius 0.1", "radius 0.2", "radius 1"]
    scores = [oracle.score(proposal.allocation) for proposal in proposals]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] < oracle.score(space.project({unit.name: 0.5 for unit in UNITS}))
    for proposal, radius in zip(proposals, [0.05, 0.1, 0.2, 1.0], strict=True):
        assert GRID.n_removed_weights(proposal.allocation) == space.target.n_weights + -space.target.n_weights % 10
        for unit in UNITS:
            assert (
                abs(proposal.allocation[unit.name] / unit.n_items - 0.5)
                <= radius + GRID.levels[unit.name].items[1] / unit.n_items
            )


def test_all_proposals_come_of_the_same_looks_at_the_same_windows_and_the_first_carries_their_tokens():
    oracle = AnalyticOracle.of(GRID)
    settings_ = DynamicProgramme(offsets=[-0.2, 0.1], n_windows=4, bracket=0.05, radii=[0.1, 0.05])
    proposer = settings_.build(make_space(oracle), 0, None)
    assert proposer.ask(0) == []
    assert oracle.asked == []
    said = [proposer.ask(1) for _ in range(4)]
    assert [len(proposals) for proposals in said] == [1, 1, 0, 0]
    assert [proposals[0].proposal_tokens for proposals in said[:2]] == [2 * 24, 0]
    assert [asked[1:] for asked in oracle.asked] == [(0.05, 0, 4)] * 2
    for (allocation, *_), sparsity in zip(oracle.asked, [0.3, 0.6], strict=True):
        GRID.check(allocation)
        assert GRID.sparsities(allocation) == pytest.approx({unit.name: sparsity for unit in UNITS}, abs=0.0125)


def test_equal_solutions_are_said_once():
    oracle = AnalyticOracle(GRID, dict.fromkeys([unit.name for unit in UNITS], 1.0))
    assert len(ask(make_space(oracle), radii=[0.2, 0.4])) == 1


def test_costs_are_interpolated_and_go_on_along_the_median_slope():
    units = [Unit(name, i, "w", 1000) for i, name in enumerate("ab")]
    grid = LevelGrid.with_constant_step(units, 0.01)
    looks = [{"a": (0.7, 8.0), "b": (0.7, 4.0)}, {"a": (0.3, 2.0), "b": (0.3, 1.0)}, {"a": (0.5, 4.0)}]
    damages = damage_curves(grid, looks)
    middles = (np.arange(100) + 0.5) / 100
    assert np.diff(damages["a"]) == pytest.approx(4.0 * 2 ** ((middles - 0.5) / 0.2))
    assert np.diff(damages["b"]) == pytest.approx(2 ** ((middles - 0.3) / 0.2))
    assert damages["a"][0] == damages["b"][0] == 0.0


def test_noise_where_the_model_is_broken_leaves_the_order_of_the_units():
    # Costs and their noise are a thousand times as large at the sparse end, where half of them are below zero.
    rng = random.Random(0)
    true = {unit.name: 1.0 + i for i, unit in enumerate(UNITS)}
    looks = [
        {name: (sparsity, scale * (cost + noise * rng.gauss(0, 9))) for name, cost in true.items()}
        for sparsity, scale, noise in [(0.4, 1.0, 0.0), (0.5, 4.0, 0.0), (0.6, 16.0, 0.0), (0.8, 1000.0, 1.0)]
    ]
    damages = damage_curves(GRID, looks)
    half = [float(np.diff(damages[unit.name])[GRID.levels[unit.name].n_steps // 2]) for unit in UNITS]
    assert half == sorted(half)


NAME = st.sampled_from([unit.name for unit in UNITS[:3]])
COST = st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.floats(-1e6, -1e-6))


@settings(max_examples=60)
@given(st.lists(st.dictionaries(NAME, st.tuples(st.floats(0, 1), COST)), max_size=6))
def test_damages_are_finite_and_convex_whatever_the_costs(looks):
    grid = LevelGrid.with_constant_step(UNITS[:3], 0.05, max_sparsity=0.9)
    damages = damage_curves(grid, looks)
    for unit in grid.units:
        costs = np.diff(damages[unit.name])
        assert len(costs) == grid.levels[unit.name].n_steps
        assert np.isfinite(costs).all()
        assert (costs > 0).all()
        assert (np.diff(costs) >= -1e-9 * costs.max()).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("gap", [5e-324, 1e-310, 1e-300, 1e-16])
def test_looks_closer_than_a_weight_count_as_one_place(gap):
    name = UNITS[0].name
    near, same = (damage_curves(GRID, [{name: (0.0, 1.0)}, {name: (at, 2.0)}]) for at in (gap, 0.0))
    assert all(np.allclose(near[unit.name], same[unit.name], rtol=1e-9) for unit in UNITS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, -1.0])
def test_a_unit_without_a_usable_cost_counts_as_a_typical_or_a_cheap_one(value):
    class Broken(AnalyticOracle):
        def __call__(self, *asked):
            values = super().__call__(*asked)
            for costs in (values.restoring, values.removing):
                costs.pop("layers.1.q")
                if value is not None:
                    costs["layers.1.q"] = value
            return values

    space = make_space(Broken.of(GRID))
    (proposal,) = ask(space, **UNBOUNDED)
    assert space.target.is_met(proposal.allocation)
    sparsities = GRID.sparsities(proposal.allocation)
    others = [sparsities[unit.name] for unit in UNITS if unit.name != "layers.1.q"]
    if value == -1.0:
        assert sparsities["layers.1.q"] > max(others)
    else:
        assert min(others) < sparsities["layers.1.q"] < max(others)


def test_without_any_usable_cost_it_proposes_the_uniform_allocation():
    space = make_space(AnalyticOracle(GRID, dict.fromkeys([unit.name for unit in UNITS], math.nan)))
    (proposal,) = ask(space, radii=[0.0001])
    assert proposal.allocation == space.project({unit.name: 0.5 for unit in UNITS})


@pytest.mark.parametrize("finer", [{"q": 2}, {"q": 3, "up": 2}])
def test_steps_that_differ_in_weights_are_served(finer):
    grid = LevelGrid.with_constant_step(UNITS, 0.1, finer=finer)
    oracle = AnalyticOracle.of(grid)
    space = make_space(oracle)
    (proposal,) = ask(space, **UNBOUNDED)
    grid.check(proposal.allocation)
    surplus = grid.n_removed_weights(proposal.allocation) - space.target.n_weights
    assert 0 <= surplus < min(grid.step_weights(unit) for unit in UNITS)
    assert oracle.score(proposal.allocation) < oracle.score(space.project({unit.name: 0.5 for unit in UNITS}))


def test_another_budget_than_weights_is_met_and_its_prices_count():
    # Weights of the first block save thrice as much as others, those of the last block nothing above the middle.
    oracle = AnalyticOracle(GRID, dict.fromkeys([unit.name for unit in UNITS], 1.0))
    costs = {}
    for unit in UNITS:
        bound = unit.n_items // 2 if unit.block == 2 else unit.n_items
        savings = [(3 if unit.block == 0 else 1) * min(level, bound) for level in GRID.levels[unit.name].items]
        costs[unit.name] = GRID.levels[unit.name].useful(savings)
    space = make_space(oracle, target=Target(5000, costs, 3000, 9000))
    (proposal,) = ask(space, **UNBOUNDED)
    assert space.target.is_met(proposal.allocation)
    sparsities = GRID.sparsities(proposal.allocation)
    assert sparsities["layers.0.up"] > sparsities["layers.1.up"] + 0.1
    uniform = space.project({unit.name: 0.5 for unit in UNITS})
    assert oracle.score(proposal.allocation) < oracle.score(uniform)


def test_counting_coarsely_costs_little():
    grid = LevelGrid.with_constant_step(UNITS, 0.0025)
    oracle = AnalyticOracle.of(grid)
    space = make_space(oracle)
    uniform = oracle.score(space.project({unit.name: 0.5 for unit in UNITS}))
    (fine,), (coarse,) = (ask(space, max_steps=max_steps, **UNBOUNDED) for max_steps in (10**6, 100))
    assert space.target.is_met(coarse.allocation)
    gains = [uniform - oracle.score(proposal.allocation) for proposal in (fine, coarse)]
    assert 0.95 * gains[0] < gains[1] <= gains[0] + 1e-9


def test_a_model_of_seven_billion_weights_takes_seconds():
    kinds = {**dict.fromkeys("qkvo", 4096**2), **dict.fromkeys(["gate", "up", "down"], 4096 * 11008)}
    units = [Unit(f"{b}.{kind}", b, kind, n) for b in range(32) for kind, n in kinds.items()]
    grid = LevelGrid.with_constant_step(units, 0.005)
    assert (len(units), max(levels.n_steps for levels in grid.levels.values())) == (224, 537)
    space = make_space(AnalyticOracle.of(grid))
    began = time.process_time()
    (proposal,) = ask(space, **UNBOUNDED)
    assert space.target.is_met(proposal.allocation)
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    "changes",
    [{"offsets": []}, {"offsets": [1.0]}, {"radii": []}, {"radii": [0.0]}, {"n_windows": 0}, {"bracket": -0.1}, {"max_steps": 0}],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match="got "):
        DynamicProgramme(**changes)


def test_without_gradients_it_says_so():
    with pytest.raises(ConfigError, match="needs gradients of the score"):
        DynamicProgramme().build(replace(make_space(AnalyticOracle.of(GRID)), move_values=None), 0, None)


def test_what_the_oracle_leaves_out_at_the_ends_of_the_grid_is_done_without():
    class Silent(AnalyticOracle):
        def __call__(self, *asked):
            return MoveValues({}, {}, super().__call__(*asked).n_tokens)

    for sparsity in (0.0, 0.02, 0.98, 0.995):
        for oracle in (AnalyticOracle.of(GRID), Silent.of(GRID)):
            space = make_space(oracle, sparsity)
            assert all(space.target.is_met(proposal.allocation) for proposal in ask(space))


def test_looks_that_are_not_paid_leave_it_silent():
    oracle = AnalyticOracle.of(GRID, is_rich=False)
    assert (ask(make_space(oracle)), oracle.asked) == ([], [])
