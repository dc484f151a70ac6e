import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfprune.allocations.levels import Levels


@st.composite
def even_levels(draw):
    step, n_steps = draw(st.integers(1, 50)), draw(st.integers(0, 40))
    return Levels.even(draw(st.integers(max(1, step * n_steps), 4000)), step, n_steps, draw(st.integers(1, 10**6)))


@given(even_levels(), st.floats(-0.5, 1.5))
def test_even_levels_save_in_proportion(levels, sparsity):
    clipped = min(max(sparsity, 0.0), levels.highest / levels.n_items)
    per_item = levels.saved[-1] // levels.highest if levels.n_steps else 0
    assert levels.near(sparsity) == pytest.approx(clipped * levels.n_items * per_item, rel=1e-12, abs=1e-9)
    level, fraction = levels.below(sparsity)
    assert level in levels
    if levels.n_steps:
        assert level + fraction * levels.step == pytest.approx(clipped * levels.n_items, rel=1e-9, abs=1e-9)
        assert abs(levels.nearest(sparsity) - clipped * levels.n_items) <= levels.step / 2 + 1e-9


@given(even_levels(), st.floats(-0.5, 1.5), st.floats(0, 0.2), st.floats(0, 1))
def test_a_line_between_two_sparsities_gives_the_same_to_the_bit(levels, start, width, part):
    between = min(start + part * width, start + width)
    line = levels.line(start, start + width)
    assert [line(sparsity) for sparsity in (start, between, start + width)] == list(
        map(levels.near, (start, between, start + width))
    )


@given(even_levels())
def test_levels_are_counted_through(levels):
    for i, level in enumerate(levels.items):
        assert (levels.index(level), levels.saved_at(level)) == (i, levels.saved[i])
        assert i == levels.n_steps or levels.next(level) == levels.moved(level, 1) == levels.items[i + 1]
        assert i == 0 or levels.previous(level) == levels.moved(level, -1) == levels.items[i - 1]
    assert levels.moved(0, -1) == 0
    assert levels.moved(levels.highest, 1) == levels.highest


def test_the_last_level_may_be_all_items_whatever_the_steps_before():
    levels = Levels(100, (0, 30, 60, 100), (0, 3, 6, 11))
    assert [levels.nearest(sparsity) for sparsity in (-1, 0.14, 0.16, 0.79, 0.81, 2)] == [0, 0, 30, 60, 100, 100]
    assert [levels.at_least(sparsity) for sparsity in (0, 0.3, 0.31, 0.61, 2)] == [0, 30, 60, 100, 100]
    assert [levels.near(sparsity) for sparsity in (0.3, 0.7, 1)] == [3, 7.25, 11]
    assert levels.below(0.7) == (60, 0.25)
    assert (30 in levels, 90 in levels, levels.step) == (True, False, pytest.approx(100 / 3))


def test_useless_levels_are_skipped():
    levels = Levels.even(100, 10, 5, 1).useful([0, 0, 0, 7, 7, 9])
    assert (levels.items, levels.saved) == ((0, 30, 50), (0, 7, 9))
    assert (levels.next(0), levels.next(30), levels.previous(50), levels.previous(30)) == (30, 50, 30, 0)
    assert [levels.saved_at(level) for level in (20, 30, 40, 50)] == [0, 7, 7, 9]
    assert [levels.near(sparsity) for sparsity in (-1.0, 0.15, 0.3, 0.4, 0.5, 2.0)] == [0, 3.5, 7, 8, 9, 9]
    assert [levels.below(sparsity) for sparsity in (0.15, 0.3, 0.4, 0.9)] == [(0, 0.5), (30, 0.0), (30, 0.5), (50, 0.0)]


@pytest.mark.parametrize("levels", [Levels.even(10**7, 10**6, 10, 1), Levels.even(10**7, 10**6, 10, 1).useful(range(11))])
def test_a_sparsity_that_rounding_left_just_below_a_level_counts_as_it(levels):
    level, fraction = levels.below(0.3 - 1e-9)
    assert level == 3 * 10**6
    assert fraction == pytest.approx(-1e-8, rel=1e-3)
    assert levels.below(0.3 - 1e-6)[0] == 2 * 10**6
