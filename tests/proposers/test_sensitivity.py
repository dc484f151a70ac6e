import math

import pytest

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.closed_forms.sensitivity import Sensitivity

UNITS = [Unit(name, i, "w", n) for i, (name, n) in enumerate({"a": 1000, "b": 1000, "c": 4000, "d": 2000}.items())]
GRID = LevelGrid.with_constant_step(UNITS, 0.001)


def ask(rises, exponents=(4.0,), sparsity=0.3):
    space = SearchSpace(GRID, Target.in_weights(GRID, math.ceil(sparsity * GRID.n_weights())), rises)
    proposals = Sensitivity(list(exponents)).build(space, 0, None).ask(99)
    for proposal in proposals:
        GRID.check(proposal.allocation)
        assert GRID.n_removed_weights(proposal.allocation) == space.target.n_weights
    return [GRID.sparsities(proposal.allocation) for proposal in proposals]


def test_sensitive_units_are_pruned_less():
    (sparsities,) = ask({"a": 3.0, "b": 1.0, "c": 2.0, "d": 2.0})
    assert sparsities["a"] < sparsities["b"]
    # At the same rise, the larger unit gives more weights for the same damage.
    assert sparsities["d"] < sparsities["c"]


@pytest.mark.parametrize("exponent", [2.5, 4.0, 8.0])
def test_sparsities_follow_the_power_law(exponent):
    rises = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 2.0}
    (sparsities,) = ask(rises, [exponent])
    wished = {unit.name: (unit.n_weights / rises[unit.name]) ** (1 / (exponent - 1)) for unit in UNITS}
    scale = 0.3 * GRID.n_weights() / sum(wished[unit.name] * unit.n_weights for unit in UNITS)
    assert sparsities == pytest.approx({name: scale * wish for name, wish in wished.items()}, abs=2e-3)


def test_the_allocation_has_the_least_damage_under_its_own_law():
    rises, p = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 2.0}, 4.0
    (sparsities,) = ask(rises, [p])

    def damage(s):
        return sum(rises[name] * s[name] ** p for name in s)

    for source in UNITS:
        for sink in UNITS:
            if source is not sink:
                moved = dict(sparsities)
                moved[source.name] -= 20 / source.n_weights
                moved[sink.name] += 20 / sink.n_weights
                assert damage(moved) > damage(sparsities)


def test_a_higher_exponent_stays_nearer_to_uniform():
    spreads = [max(s.values()) - min(s.values()) for s in ask({"a": 3.0, "b": 1.0, "c": 2.0, "d": 2.0}, [2.5, 4.0, 8.0])]
    assert spreads[0] > spreads[1] > spreads[2] > 0


def test_one_proposal_per_exponent():
    space = SearchSpace(GRID, Target.in_weights(GRID, 1000), {unit.name: 1.0 for unit in UNITS})
    assert [p.operator for p in Sensitivity([8.0, 2.5]).build(space, 0, None).ask(9)] == ["p=8", "p=2.5"]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_unit_that_breaks_the_model_counts_as_the_most_sensitive(value):
    (sparsities,) = ask({"a": 1.0, "b": value, "c": 4.0, "d": 1.0})
    (expected,) = ask({"a": 1.0, "b": 4.0, "c": 4.0, "d": 1.0})
    assert sparsities == expected
    assert sparsities["b"] < sparsities["a"]


@pytest.mark.parametrize("rise", [0.0, -0.5, math.nan, math.inf, 1e-30, 1e30])
def test_rises_that_say_nothing_still_give_an_allocation_on_the_budget(rise):
    assert len(ask(dict.fromkeys("abcd", rise), [1.001, 2.0, 8.0])) == 3


def test_noise_below_zero_counts_as_hardly_sensitive():
    (sparsities,) = ask({"a": -0.01, "b": 1.0, "c": 1.0, "d": 1.0})
    (expected,) = ask({"a": 0.001, "b": 1.0, "c": 1.0, "d": 1.0})
    assert sparsities == expected


@pytest.mark.parametrize("exponents", [[], [1.0], [4.0, 0.5]])
def test_exponents_out_of_range_are_refused(exponents):
    with pytest.raises(ConfigError, match="must exceed 1, got"):
        Sensitivity(exponents)
