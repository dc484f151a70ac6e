import math

import pytest
import torch

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.closed_forms.owl import OWL, OutlierRatio, outlier_ratio

UNITS = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(3) for kind, n in {"q": 200, "up": 600}.items()]
GRID = LevelGrid.with_constant_step(UNITS, 0.05)


def make_space(ratios, sparsity=0.5):
    return SearchSpace(
        GRID,
        Target.in_weights(GRID, math.ceil(sparsity * GRID.n_weights())),
        measured={OutlierRatio(5.0): dict(enumerate(ratios))},
    )


def test_blocks_get_the_sparsities_of_the_formula():
    wished = OWL(max_deviation=0.1).sparsities(make_space([0.01, 0.03, 0.02]))
    # d = (0, 0.2, 0.1), mean 0.1, by hand.
    expected = {0: 0.6, 1: 0.4, 2: 0.5}
    assert wished == pytest.approx({unit.name: expected[unit.block] for unit in UNITS}, abs=1e-12)


def test_the_allocation_is_put_on_the_budget():
    space = make_space([0.01, 0.01, 0.04], sparsity=0.9)
    (proposal,) = OWL(max_deviation=0.5).build(space, 0, None).ask(1)
    GRID.check(proposal.allocation)
    assert 0 <= GRID.n_removed_weights(proposal.allocation) - space.target.n_weights < 10
    # d = (0, 0, 1), s = (1.23, 1.23, 0.23): two blocks are clipped to 1, and the third takes what is left.
    assert GRID.sparsities(proposal.allocation) == pytest.approx(
        {unit.name: {0: 1.0, 1: 1.0, 2: 0.7}[unit.block] for unit in UNITS}, abs=0.05
    )
    assert (proposal.proposer, proposal.parents) == ("owl", ())


@pytest.mark.parametrize("ratios", [[0.02, 0.02, 0.02], [0.0, 0.0, 0.0]])
def test_blocks_that_are_alike_are_pruned_alike(ratios):
    wished = OWL().sparsities(make_space(ratios, 0.7))
    assert wished == pytest.approx({unit.name: 0.7 for unit in UNITS})


def test_without_outlier_ratios_it_says_how_to_get_them():
    with pytest.raises(ConfigError, match=r"got none.*yardsticks.owl=owl"):
        OWL().sparsities(SearchSpace(GRID, Target.in_weights(GRID, 100)))
    with pytest.raises(ConfigError, match=r"needs OutlierRatio\(threshold=4.0\) of every block"):
        OWL(outlier_threshold=4.0).sparsities(make_space([0.01, 0.03, 0.02]))


def test_the_outlier_ratio_is_taken_over_all_units_together():
    # Mean (7·1 + 100 + 5) / 9 = 12.4; only 100 exceeds 5 times that.
    metrics = [torch.tensor([[1.0] * 7 + [100.0]]), torch.tensor([[5.0]])]
    assert outlier_ratio(metrics, 5.0) == 1 / 9
    assert outlier_ratio(metrics, 0.4) == 2 / 9
    assert outlier_ratio(metrics, 10.0) == 0.0
    # On its own, the second unit would have none; with the first it raises the count.
    assert outlier_ratio(metrics[1:], 1.0) == 0.0


def test_the_outlier_ratio_of_equal_metrics_is_zero():
    assert outlier_ratio([torch.ones(4, 4)], 5.0) == 0.0
    assert outlier_ratio([torch.zeros(4, 4)], 5.0) == 0.0


@pytest.mark.parametrize("settings", [{"outlier_threshold": 0.0}, {"max_deviation": -0.1}, {"max_deviation": 0.6}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=r"the paper uses 5 and 0.08"):
        OWL(**settings)
