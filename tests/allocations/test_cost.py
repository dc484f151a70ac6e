import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfprune.allocations.cost import LinearCost, TableCost


@st.composite
def linear_costs(draw):
    step, n_levels = draw(st.integers(1, 50)), draw(st.integers(0, 40))
    return LinearCost(draw(st.integers(max(1, step * n_levels), 4000)), step, n_levels, draw(st.integers(1, 10**6)))


@given(linear_costs(), st.floats(-0.5, 1.5))
def test_a_table_of_equal_steps_is_linear(linear, sparsity):
    savings = [linear.saved(i * linear.step) for i in range(linear.n_levels + 1)]
    table = TableCost.of_useful(linear.n_items, linear.step, savings)
    assert table.highest == linear.highest
    assert table.near(sparsity) == pytest.approx(linear.near(sparsity), rel=1e-12, abs=1e-9)
    (level, fraction), (expected, expected_fraction) = table.below(sparsity), linear.below(sparsity)
    # a sparsity within rounding of a level may be told from either side
    assert level + fraction * linear.step == pytest.approx(expected + expected_fraction * linear.step, rel=1e-9, abs=1e-9)
    for i, level in enumerate(table.levels):
        assert table.saved(level) == linear.saved(level)
        assert i == linear.n_levels or table.next(level) == linear.next(level)
        assert i == 0 or table.previous(level) == linear.previous(level)


def test_useless_levels_are_skipped():
    cost = TableCost.of_useful(100, 10, [0, 0, 0, 7, 7, 9])
    assert (cost.levels, cost.savings) == ((0, 30, 50), (0, 7, 9))
    assert (cost.next(0), cost.next(30), cost.previous(50), cost.previous(30)) == (30, 50, 30, 0)
    assert [cost.saved(level) for level in (20, 30, 40, 50)] == [0, 7, 7, 9]
    assert [cost.near(sparsity) for sparsity in (-1.0, 0.15, 0.3, 0.4, 0.5, 2.0)] == [0, 3.5, 7, 8, 9, 9]
    assert [cost.below(sparsity) for sparsity in (0.15, 0.3, 0.4, 0.9)] == [(0, 0.5), (30, 0.0), (30, 0.5), (50, 0.0)]


@pytest.mark.parametrize("cost", [LinearCost(10**7, 10**6, 10, 1), TableCost.of_useful(10**7, 10**6, range(11))])
def test_a_sparsity_that_rounding_left_just_below_a_level_counts_as_it(cost):
    level, fraction = cost.below(0.3 - 1e-9)
    assert level == 3 * 10**6
    assert fraction == pytest.approx(-1e-8, rel=1e-3)
    assert cost.below(0.3 - 1e-6)[0] == 2 * 10**6
