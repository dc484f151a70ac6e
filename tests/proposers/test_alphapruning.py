import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.closed_forms.alphapruning import AlphaPruning, TailExponent, TailStart, tail_exponent

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text()) if GOLDEN.is_dir() else {"cases": []}
CASES = [case for case in INDEX["cases"] if case["method"] == "alphapruning"]
OF_REFERENCE = {"alpha_peak": TailStart.PEAK, "alpha_mid": TailStart.MIDDLE}

UNITS = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(3) for kind, n in {"q": 200, "up": 600}.items()]
GRID = LevelGrid.with_constant_step(UNITS, 0.05)


def make_space(exponents, sparsity=0.5, grid=GRID, start=TailStart.PEAK):
    return SearchSpace(
        grid,
        Target.in_weights(grid, math.ceil(sparsity * grid.n_weights())),
        measured={TailExponent(start): dict(enumerate(exponents))},
    )


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "model_gqa" / "model.safetensors")


@pytest.fixture(scope="module")
def expected():
    return load_file(GOLDEN / "model_expected.safetensors")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_exponents_and_sparsities_equal_the_reference(case, weights, expected):
    matrices = {name: weights[f"model.layers.{name}.weight"] for name in case["linear_names"]}
    start, tolerance = OF_REFERENCE[case["arguments"]["ww_metric"]], case["tolerance"]
    ours = [tail_exponent(weight_OI, start) for weight_OI in matrices.values()]
    reference = expected[f"{case['id']}.alpha_per_linear"].tolist()
    assert ours == pytest.approx(reference, rel=tolerance["alpha_rtol"])

    units = [Unit(name, int(name.partition(".")[0]), name.partition(".")[2], w.numel()) for name, w in matrices.items()]
    blocks = range(units[-1].block + 1)
    of_blocks = [[matrices[unit.name] for unit in units if unit.block == block] for block in blocks]
    exponents = [TailExponent(start).of_block(of_block, []) for of_block in of_blocks]
    space = make_space(exponents, case["arguments"]["sparsity_ratio"], LevelGrid.with_constant_step(units, 0.01), start)
    wished = AlphaPruning(start, case["arguments"]["epsilon"]).sparsities(space)
    sparsities = expected[f"{case['id']}.block_sparsity"].tolist()
    for unit in units:
        assert wished[unit.name] == pytest.approx(sparsities[unit.block], abs=tolerance["block_sparsity_atol"])


def test_the_golden_cases_are_complete():
    if not CASES:
        pytest.skip("no golden vectors here")
    assert sorted(case["arguments"]["ww_metric"] for case in CASES) == ["alpha_mid", "alpha_mid", "alpha_peak", "alpha_peak"]


def test_blocks_get_the_sparsities_of_the_formula():
    wished = AlphaPruning(max_deviation=0.2).sparsities(make_space([2.0, 6.0, 3.0]))
    # η = (0.8, 1.2, 0.9), mean 29/30, by hand; the mean sparsity is the target.
    expected = {0: 0.5 * 0.8 * 30 / 29, 1: 0.5 * 1.2 * 30 / 29, 2: 0.5 * 0.9 * 30 / 29}
    assert wished == pytest.approx({unit.name: expected[unit.block] for unit in UNITS}, abs=1e-3)


def test_the_mean_is_weighted_by_the_size_of_the_blocks():
    units = [Unit("small", 0, "q", 100), Unit("large", 1, "q", 300)]
    grid = LevelGrid.with_constant_step(units, 0.01)
    wished = AlphaPruning(max_deviation=0.5).sparsities(make_space([2.0, 4.0], 0.5, grid))
    # η = (0.5, 1.5), mean (0.5 + 3 · 1.5) / 4 = 1.25.
    assert wished == pytest.approx({"small": 0.2, "large": 0.6})


def test_the_allocation_is_put_on_the_budget_where_the_reference_exceeds_1():
    space = make_space([2.0, 6.0, 2.0], sparsity=0.9)
    assert max(AlphaPruning().sparsities(space).values()) > 1
    (proposal,) = AlphaPruning().build(space, 0, None).ask(1)
    GRID.check(proposal.allocation)
    assert 0 <= GRID.n_removed_weights(proposal.allocation) - space.target.n_weights < 10
    assert proposal.allocation["layers.1.up"] == 600
    assert (proposal.proposer, proposal.parents) == ("alphapruning", ())


@pytest.mark.parametrize("exponents", [[2.0, 2.0, 2.0], [math.nan] * 3])
def test_blocks_that_are_alike_are_pruned_alike(exponents):
    assert AlphaPruning().sparsities(make_space(exponents, 0.7)) == pytest.approx({unit.name: 0.7 for unit in UNITS}, abs=1e-3)


def test_a_block_without_a_tail_counts_as_the_mean_of_the_others():
    assert AlphaPruning().sparsities(make_space([2.0, math.nan, 4.0])) == AlphaPruning().sparsities(make_space([2.0, 3.0, 4.0]))


def test_without_exponents_or_with_those_of_the_other_start_it_says_how_to_get_them():
    with pytest.raises(ConfigError, match=r"alphapruning needs TailExponent.*PEAK.* got none.*yardsticks.alphapruning="):
        AlphaPruning().sparsities(make_space([2.0, 3.0, 4.0], start=TailStart.MIDDLE))


@pytest.mark.parametrize("start", TailStart)
@pytest.mark.parametrize("exponent", [1.5, 2.0, 4.0])
def test_the_exponent_of_a_power_law_is_found(exponent, start):
    quantiles_L = (torch.arange(400) + 0.5) / 400
    eigenvalues_L = (1 - quantiles_L) ** (-1 / (exponent - 1))
    weight_OI = torch.diag(eigenvalues_L.sqrt())[:, torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert tail_exponent(weight_OI, start) - 1 == pytest.approx(exponent - 1, rel=0.05)


def test_the_tail_starts_in_the_middle_of_the_eigenvalues():
    # λ = 1, 4, 16, 64; the tail is 16, 64.
    assert tail_exponent(torch.diag(torch.tensor([2.0, 8.0, 1.0, 4.0])), TailStart.MIDDLE) == pytest.approx(1 + 2 / math.log(4))


def test_the_tail_starts_near_the_peak_where_a_power_law_fits_best():
    # λ = 1, 1, 4, 16; the peak is at 1. From the first 1 the distance is 0.25, from the second 0.299.
    weight_OI = torch.diag(torch.tensor([1.0, 2.0, 1.0, 4.0]))
    assert tail_exponent(weight_OI, TailStart.PEAK) == pytest.approx(1 + 4 / (3 * math.log(4)), rel=1e-5)


@pytest.mark.parametrize("start", TailStart)
def test_the_exponent_depends_neither_on_transposition_nor_on_zeros(start):
    weight_OI = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    exponent = tail_exponent(weight_OI, start)
    assert math.isfinite(exponent)
    assert tail_exponent(weight_OI.T, start) == pytest.approx(exponent, rel=1e-4)
    padded_OI = torch.diag(torch.tensor([1.0, 2.0, 1.0, 4.0, 0.0, 0.0]))
    assert tail_exponent(padded_OI, start) == pytest.approx(tail_exponent(padded_OI[:4, :4], start), rel=1e-6)


@pytest.mark.parametrize("start", TailStart)
@pytest.mark.parametrize("weight_OI", [torch.zeros(4, 6), torch.eye(5), torch.ones(1, 7)], ids=["zero", "identity", "row"])
def test_a_matrix_without_a_tail_has_no_exponent(weight_OI, start):
    assert math.isnan(tail_exponent(weight_OI, start))
    assert math.isnan(TailExponent(start).of_block([weight_OI, weight_OI], []))
    other_OI = torch.diag(torch.tensor([1.0, 2.0, 1.0, 4.0]))
    assert TailExponent(start).of_block([weight_OI, other_OI], []) == tail_exponent(other_OI, start)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_dtype_are_measured(dtype):
    weight_OI = torch.diag(torch.tensor([1.0, 2.0, 1.0, 4.0], dtype=dtype))
    assert tail_exponent(weight_OI, TailStart.PEAK) == pytest.approx(1 + 4 / (3 * math.log(4)), rel=1e-5)


@pytest.mark.parametrize("max_deviation", [-0.1, 1.0, math.nan])
def test_settings_out_of_range_are_refused(max_deviation):
    with pytest.raises(ConfigError, match=r"needs max_deviation in \[0, 1\), got"):
        AlphaPruning(max_deviation=max_deviation)
