import math

import pytest
import torch

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.closed_forms.dlp import DLP, MedianMetric

UNITS = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(3) for kind, n in {"q": 200, "up": 600}.items()]
GRID = LevelGrid.with_constant_step(UNITS, 0.05)


def make_space(medians, sparsity=0.5):
    return SearchSpace(
        GRID, Target.in_weights(GRID, math.ceil(sparsity * GRID.n_weights())), measured={MedianMetric(): dict(enumerate(medians))}
    )


def test_blocks_get_the_sparsities_of_the_formula():
    wished = DLP(max_deviation=0.1).sparsities(make_space([1.0, 3.0, 2.0]))
    # R = (5/6, 3/6, 4/6), d = (0.2, 0, 0.1), mean 0.1, by hand.
    expected = {0: 0.4, 1: 0.6, 2: 0.5}
    assert wished == pytest.approx({unit.name: expected[unit.block] for unit in UNITS}, abs=1e-12)


def test_the_scale_of_the_medians_does_not_matter():
    wished = DLP().sparsities(make_space([1.0, 3.0, 2.5]))
    assert DLP().sparsities(make_space([1e-6, 3e-6, 2.5e-6])) == pytest.approx(wished, abs=1e-9)


def test_the_allocation_is_put_on_the_budget():
    space = make_space([2.0, 2.0, 1.0], sparsity=0.9)
    (proposal,) = DLP(max_deviation=0.5).build(space, 0, None).ask(1)
    GRID.check(proposal.allocation)
    assert 0 <= GRID.n_removed_weights(proposal.allocation) - space.target.n_weights < 10
    # d = (0, 0, 1), s = (1.23, 1.23, 0.23): two blocks are clipped to 1, and the third takes what is left.
    expected = {unit.name: {0: 1.0, 1: 1.0, 2: 0.7}[unit.block] for unit in UNITS}
    assert GRID.sparsities(proposal.allocation) == pytest.approx(expected, abs=0.05)
    assert (proposal.proposer, proposal.parents) == ("dlp", ())


@pytest.mark.parametrize("medians", [[0.2, 0.2, 0.2], [0.0, 0.0, 0.0]])
def test_blocks_that_are_alike_are_pruned_alike(medians):
    assert DLP().sparsities(make_space(medians, 0.7)) == pytest.approx({unit.name: 0.7 for unit in UNITS})


def test_a_single_block_is_at_the_target():
    grid = LevelGrid.with_constant_step([Unit("q", 0, "q", 100), Unit("up", 0, "up", 300)], 0.01)
    wished = DLP().sparsities(SearchSpace(grid, Target.in_weights(grid, 200), measured={MedianMetric(): {0: 0.3}}))
    assert wished == pytest.approx({"q": 0.5, "up": 0.5})


def test_without_medians_it_says_how_to_get_them():
    with pytest.raises(ConfigError, match=r"dlp needs MedianMetric.* got none.*yardsticks.dlp=dlp"):
        DLP().sparsities(SearchSpace(GRID, Target.in_weights(GRID, 100)))


def test_the_median_is_taken_over_all_units_together_and_is_the_lower_of_two():
    metrics = [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0], [20.0], [30.0]])]
    assert MedianMetric().of_block([], metrics) == 3.0
    assert MedianMetric().of_block([], metrics[1:]) == 20.0
    assert MedianMetric().of_block([], [torch.zeros(3, 3)]) == 0.0


@pytest.mark.parametrize("max_deviation", [-0.1, 0.6, math.nan])
def test_settings_out_of_range_are_refused(max_deviation):
    with pytest.raises(ConfigError, match=r"needs max_deviation in \[0, 0.5\], got"):
        DLP(max_deviation)
