import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfprune.allocation import LevelGrid, Unit
from selfprune.budget import Budget
from selfprune.errors import ConfigError


def grid_of(n_weights):
    return LevelGrid.with_constant_step([Unit("a", 0, "w", n_weights)], 0.05)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.2, 70, math.nan, math.inf])
def test_a_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(ConfigError, match=r"budget.sparsity must lie in \[0, 1\), got"):
        Budget(sparsity)


@pytest.mark.parametrize(
    ("sparsity", "n_weights", "n_target"), [(0.0, 7, 0), (0.5, 7, 4), (0.7, 1000, 700), (0.29, 100, 29), (0.1, 30, 3)]
)
def test_the_target_is_the_sparsity_rounded_up_to_a_weight(sparsity, n_weights, n_target):
    assert Budget(sparsity).n_target_weights(grid_of(n_weights)) == n_target


@given(st.integers(1, 10**9), st.floats(0, 0.99))
def test_the_target_is_the_least_number_that_reaches_the_sparsity(n_weights, sparsity):
    n_target = Budget(sparsity).n_target_weights(grid_of(n_weights))
    assert sparsity * n_weights - 1e-5 <= n_target < sparsity * n_weights + 1
