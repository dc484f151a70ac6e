import math

import pytest

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.closed_forms.atp import ATP


def make_space(n_blocks=3, sparsity=0.5, first_block=0):
    sizes = {"q": 2000, "up": 6000}
    units = [Unit(f"layers.{b}.{k}", b, k, n) for b in range(first_block, first_block + n_blocks) for k, n in sizes.items()]
    grid = LevelGrid.with_constant_step(units, 0.001)
    return SearchSpace(grid, Target.in_weights(grid, math.ceil(sparsity * grid.n_weights())))


def ask(atp, space):
    return atp.build(space, 0, None).ask(99)


@pytest.mark.parametrize("first_block", [0, 5])
def test_sparsities_rise_by_the_slope_from_block_to_block(first_block):
    space = make_space(first_block=first_block)
    wished = ATP(slope=0.1).sparsities(space)
    expected = {0: 0.4, 1: 0.5, 2: 0.6}
    assert wished == pytest.approx({unit.name: expected[unit.block - first_block] for unit in space.grid.units}, abs=1e-9)


def test_the_grid_of_the_paper_at_its_own_setting():
    # 0 < β ≤ 2 · 0.3 / 31 = 0.0194 in steps of 0.002.
    slopes = ATP().slopes(make_space(32, 0.7))
    assert sorted(slopes) == pytest.approx([0.002 * i for i in range(1, 10)])
    assert slopes[0] == pytest.approx(0.010)


@pytest.mark.parametrize(("n_blocks", "sparsity"), [(2, 0.5), (12, 0.7), (32, 0.5), (80, 0.7), (12, 0.1), (300, 0.5), (600, 0.9)])
@pytest.mark.parametrize("max_slopes", [1, 4, 9])
def test_the_grid_stays_small_and_no_sparsity_leaves_0_to_1(n_blocks, sparsity, max_slopes):
    space = make_space(n_blocks, sparsity)
    slopes = ATP(max_slopes=max_slopes).slopes(space)
    assert 1 <= len(slopes) == len(set(slopes)) <= max_slopes
    for slope in slopes:
        assert 0 < slope <= 2 * min(sparsity, 1 - sparsity) / (n_blocks - 1)
        wished = ATP(slope=slope).sparsities(space)
        assert -1e-9 <= min(wished.values()) < max(wished.values()) <= 1 + 1e-9


def test_one_proposal_per_slope_says_which_and_meets_the_budget():
    space = make_space(12, 0.7)
    proposals = ask(ATP(), space)
    assert len(proposals) == 9
    for proposal, slope in zip(proposals, ATP().slopes(space), strict=True):
        assert (proposal.proposer, proposal.operator) == ("atp", f"slope={slope:g}")
        assert space.grid.n_removed_weights(proposal.allocation) == space.target.n_weights
        sparsities = space.grid.sparsities(proposal.allocation)
        assert sparsities["layers.11.up"] - sparsities["layers.0.up"] == pytest.approx(11 * slope, abs=2e-3)


def test_a_single_slope_makes_a_single_proposal():
    (proposal,) = ask(ATP(slope=0.01), make_space())
    assert proposal.operator == "slope=0.01"


def test_as_a_yardstick_without_a_slope_it_takes_the_middle_of_the_grid():
    space = make_space(32, 0.7)
    (first,) = ATP().build(space, 0, None).ask(1)
    assert first.operator == "slope=0.01"
    assert first.allocation == space.project(ATP().sparsities(space))


@pytest.mark.parametrize("slope", [None, 0.0, 0.5])
def test_a_single_block_is_pruned_uniformly(slope):
    space = make_space(1, 0.6)
    (proposal,) = ask(ATP(slope=slope), space)
    assert set(space.grid.sparsities(proposal.allocation).values()) == {0.6}


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_where_nothing_is_left_to_choose_it_proposes_once(sparsity):
    assert len(ask(ATP(), make_space(4, sparsity))) == 1


def test_slopes_that_come_to_one_allocation_are_proposed_once():
    units = [Unit(f"layers.{b}.q", b, "q", 10) for b in range(2)]
    grid = LevelGrid.with_single_level(units, 0.5)
    assert len(ask(ATP(), SearchSpace(grid, Target.in_weights(grid, 5)))) == 1


def test_a_slope_that_leads_out_of_0_to_1_is_refused():
    with pytest.raises(ConfigError, match=r"must lie in \[0, 0.2\], lest a block of 3 at a mean sparsity of 0.8 .* got 0.25"):
        ATP(slope=0.25).sparsities(make_space(3, 0.8))


@pytest.mark.parametrize("settings", [{"slope": -0.1}, {"slope": math.nan}, {"step": 0.0}, {"max_slopes": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=r"the paper's step is 0.002"):
        ATP(**settings)
