"""What every pruner must do. A pruner joins by one line in PRUNERS.

Shape suffixes: O out, I in, N sequences, T tokens, E experts.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfprune.errors import ConfigError, PruningError
from selfprune.pruners.base import Scope
from selfprune.pruners.magnitude import Magnitude
from selfprune.pruners.wanda import Wanda, wanda_metric

PRUNERS = [
    Wanda,
    Magnitude,
]
SETTINGS = [{"scope": Scope.ROW}, {"scope": Scope.MATRIX}, {"pattern": "2:4"}, {"pattern": "4:8"}]
N_OUT, N_IN = 12, 24


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gathered(pruner, inputs_NTI, n_row_groups=1):
    statistics = pruner.statistics(n_row_groups, inputs_NTI.shape[-1], len(inputs_NTI))
    for sequence_TI in inputs_NTI:
        statistics.update(sequence_TI)
    return statistics


def removed(pruner, weight_OI, n_pruned, inputs_NTI=None):
    """True where a weight goes."""
    inputs_NTI = normal(3, 5, weight_OI.shape[1], seed=1) if inputs_NTI is None else inputs_NTI
    return ~pruner.prune(weight_OI, gathered(pruner, inputs_NTI), n_pruned).mask_OI


def describe(settings):
    return settings.get("pattern") or settings["scope"].value


@pytest.mark.parametrize("method", PRUNERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=describe)
class TestEveryPruner:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_exactly_as_many_go_as_are_asked_for_and_each_level_contains_the_one_below(self, method, settings, dtype):
        weight_OI = normal(N_OUT, N_IN).to(dtype)
        statistics = gathered(method(**settings), normal(3, 5, N_IN, seed=1).to(dtype))
        before_OI = torch.zeros(N_OUT, N_IN, dtype=torch.bool)
        for n_pruned in (0, 1, 2, 47, 48, 97, 144, 200, N_OUT * N_IN - 1, N_OUT * N_IN):
            removed_OI = ~method(**settings).prune(weight_OI, statistics, n_pruned).mask_OI
            assert removed_OI.sum() == n_pruned
            assert not (before_OI & ~removed_OI).any()
            before_OI = removed_OI

    def test_the_ranks_are_a_permutation_and_the_masks_follow_them(self, method, settings):
        pruner, weight_OI = method(**settings), normal(N_OUT, N_IN)
        statistics = gathered(pruner, normal(3, 5, N_IN, seed=1))
        ranks_OI = pruner.ranks(weight_OI, statistics)
        assert ranks_OI.dtype is torch.int32
        assert torch.equal(ranks_OI.flatten().sort().values, torch.arange(N_OUT * N_IN, dtype=torch.int32))
        for n_pruned in range(0, N_OUT * N_IN, 37):
            assert torch.equal(pruner.prune(weight_OI, statistics, n_pruned).mask_OI, ranks_OI >= n_pruned)

    def test_weights_and_statistics_stay_as_they_are(self, method, settings):
        weight_OI, inputs_NTI = normal(N_OUT, N_IN), normal(3, 5, N_IN, seed=1)
        copies = weight_OI.clone(), inputs_NTI.clone()
        pruner = method(**settings)
        statistics = gathered(pruner, inputs_NTI)
        first_OI = pruner.prune(weight_OI, statistics, 100).mask_OI
        assert torch.equal(weight_OI, copies[0])
        assert torch.equal(inputs_NTI, copies[1])
        assert torch.equal(pruner.prune(weight_OI, statistics, 100).mask_OI, first_OI)

    def test_a_transposed_view_is_pruned_like_its_copy(self, method, settings):
        weight_IO = normal(N_IN, N_OUT)
        assert torch.equal(
            removed(method(**settings), weight_IO.T, 100), removed(method(**settings), weight_IO.T.contiguous(), 100)
        )

    def test_ties_go_by_index(self, method, settings):
        removed_OI = removed(method(**settings), torch.ones(N_OUT, N_IN), 144, torch.ones(3, 5, N_IN))
        index_OI = torch.arange(N_OUT * N_IN).view(N_OUT, N_IN)
        if "pattern" in settings:
            width = int(settings["pattern"][2:])
            expected_OI = index_OI % width < width // 2
        else:
            expected_OI = index_OI < 144 if settings["scope"] is Scope.MATRIX else index_OI % N_IN < N_IN // 2
        assert torch.equal(removed_OI, expected_OI)

    @pytest.mark.parametrize("n_pruned", [0, 1, 100, N_OUT * N_IN])
    @pytest.mark.parametrize("case", ["zero matrix", "zero row", "zero column", "constant rows", "dead column", "dead input"])
    def test_degenerate_weights_and_inputs_prune_exactly(self, method, settings, case, n_pruned):
        weight_OI, inputs_NTI = normal(N_OUT, N_IN), normal(3, 5, N_IN, seed=1)
        if case == "zero matrix":
            weight_OI.zero_()
        elif case == "zero row":
            weight_OI[3] = 0
        elif case == "zero column":
            weight_OI[:, 7] = 0
        elif case == "constant rows":
            weight_OI = torch.full_like(weight_OI, 0.5)
        elif case == "dead column":
            inputs_NTI[..., 7] = 0
        else:
            inputs_NTI.zero_()
        assert removed(method(**settings), weight_OI, n_pruned, inputs_NTI).sum() == n_pruned

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_weights_that_are_not_finite_are_refused(self, method, settings, value):
        weight_OI = normal(N_OUT, N_IN)
        weight_OI[2, 5] = value
        with pytest.raises(PruningError, match="not finite"):
            removed(method(**settings), weight_OI, 10)

    @pytest.mark.parametrize("n_pruned", [-1, N_OUT * N_IN + 1])
    def test_a_count_out_of_range_is_refused(self, method, settings, n_pruned):
        with pytest.raises(PruningError, match=f"288 weights cannot lose {n_pruned}; ask for 0 to 288"):
            removed(method(**settings), normal(N_OUT, N_IN), n_pruned)

    def test_a_zero_weight_goes_before_any_other_of_its_row(self, method, settings):
        weight_OI = normal(N_OUT, N_IN)
        weight_OI[:, ::8] = 0
        removed_OI = removed(method(**settings), weight_OI, N_OUT * N_IN // 8)
        assert torch.equal(removed_OI, weight_OI == 0)


@pytest.mark.parametrize("method", PRUNERS)
@pytest.mark.parametrize(("pattern", "n_kept", "width"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4), ("3:8", 3, 8)])
def test_a_pattern_keeps_n_of_every_m_at_its_level(method, pattern, n_kept, width):
    pruner = method(pattern=pattern)
    assert pruner.level_fraction() == 1 - n_kept / width
    kept_OI = ~removed(pruner, normal(N_OUT, N_IN), round(pruner.level_fraction() * N_OUT * N_IN))
    assert (kept_OI.view(-1, width).sum(dim=1) == n_kept).all()


@pytest.mark.parametrize("method", PRUNERS)
def test_the_rows_take_turns(method):
    pruner, weight_OI = method(scope=Scope.ROW), normal(N_OUT, N_IN)
    for n_pruned in range(0, N_OUT * N_IN, 5):
        per_row = removed(pruner, weight_OI, n_pruned).sum(dim=1)
        assert per_row.max() - per_row.min() <= 1
    assert pruner.level_fraction() is None


@pytest.mark.parametrize("method", PRUNERS)
def test_the_remainder_goes_to_the_rows_with_the_lowest_scores(method):
    pruner, weight_OI = method(scope=Scope.ROW), normal(N_OUT, N_IN)
    statistics = gathered(pruner, normal(3, 5, N_IN, seed=1))
    fourth_O = pruner.scores(weight_OI, statistics).sort(dim=1).values[:, 3]
    per_row = (~pruner.prune(weight_OI, statistics, 3 * N_OUT + 5).mask_OI).sum(dim=1)
    assert set((per_row == 4).nonzero().flatten().tolist()) == set(fourth_O.argsort()[:5].tolist())


@pytest.mark.parametrize("method", PRUNERS)
def test_a_width_that_the_pattern_does_not_divide_is_refused(method):
    with pytest.raises(PruningError, match="pattern 4:8 needs an input width divisible by 8, got 12"):
        removed(method(pattern="4:8"), normal(4, 12), 0)


@pytest.mark.parametrize("method", PRUNERS)
@pytest.mark.parametrize("pattern", ["2", "4:2", "4:4", "0:4", "2:4:8", "a:b", "-1:4", "2 of 4"])
def test_a_pattern_that_is_none_is_refused(method, pattern):
    with pytest.raises(ConfigError, match=r"must read N:M .* got .*; for example 2:4"):
        method(pattern=pattern)


@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from(list(Scope)), st.integers(0, 2**31), st.data())
def test_counts_are_exact_for_matrices_of_any_shape_with_many_ties(n_out, n_in, scope, seed, data):
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randint(-2, 3, (n_out, n_in), generator=generator).float()
    n_pruned = data.draw(st.integers(0, n_out * n_in))
    for method in PRUNERS:
        assert removed(method(scope=scope), weight_OI, n_pruned).sum() == n_pruned


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.7, 1.0])
def test_wanda_equals_a_sort_of_every_row_in_fp64(ratio):
    weight_OI, inputs_NTI = normal(N_OUT, N_IN), normal(3, 5, N_IN, seed=1)
    n_per_row = int(N_IN * ratio)
    expected_OI = torch.zeros(N_OUT, N_IN, dtype=torch.bool)
    squares = [sum(float(x) ** 2 for x in inputs_NTI[..., j].flatten()) / 3 for j in range(N_IN)]
    for i in range(N_OUT):
        metric = [abs(float(weight_OI[i, j])) * math.sqrt(squares[j]) for j in range(N_IN)]
        for j in sorted(range(N_IN), key=metric.__getitem__)[:n_per_row]:
            expected_OI[i, j] = True
    assert torch.equal(removed(Wanda(), weight_OI, n_per_row * N_OUT, inputs_NTI), expected_OI)


@pytest.mark.parametrize("n_pruned", [1, 100, 287])
def test_magnitude_equals_a_sort_of_the_whole_matrix(n_pruned):
    weight_OI = normal(N_OUT, N_IN)
    order = sorted(range(N_OUT * N_IN), key=lambda i: abs(float(weight_OI.view(-1)[i])))
    expected = torch.zeros(N_OUT * N_IN, dtype=torch.bool)
    expected[order[:n_pruned]] = True
    assert torch.equal(removed(Magnitude(), weight_OI, n_pruned), expected.view(N_OUT, N_IN))


def test_the_wanda_statistic_is_the_sum_over_tokens_per_sequence_however_it_is_fed():
    inputs_NTI = normal(4, 5, N_IN)
    expected_I = inputs_NTI.double().square().sum(dim=(0, 1)) / 4
    at_once = Wanda().statistics(1, N_IN, 4)
    at_once.update(inputs_NTI)
    for statistics in (at_once, gathered(Wanda(), inputs_NTI)):
        torch.testing.assert_close(statistics.means()[0].double(), expected_I, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_wanda_statistic_is_kept_in_fp32(dtype):
    statistics = Wanda().statistics(1, 2, 1)
    inputs_NTI = torch.full((1, 4096, 2), 300.0, dtype=dtype)
    statistics.update(inputs_NTI)
    assert statistics.means().dtype is torch.float32
    torch.testing.assert_close(statistics.means(), torch.full((1, 2), 4096 * float(inputs_NTI[0, 0, 0]) ** 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_wanda_refuses_inputs_that_are_not_finite(value):
    inputs_NTI = normal(3, 5, N_IN)
    inputs_NTI[1, 2, 3] = value
    with pytest.raises(PruningError, match="calibration inputs hold NaN or infinity"):
        removed(Wanda(), normal(N_OUT, N_IN), 10, inputs_NTI)


def test_every_expert_is_ranked_by_the_inputs_that_it_saw():
    weight_EOI, inputs_ETI = normal(3, 4, 8), normal(3, 10, 8, seed=1)
    fused = Wanda().statistics(3, 8, 2)
    for e in range(3):
        fused.update(inputs_ETI[e, :5], e)
        fused.update(inputs_ETI[e, 5:], e)
    metric_EOI = wanda_metric(weight_EOI.view(12, 8), fused).view(3, 4, 8)
    for e in range(3):
        own = Wanda().statistics(1, 8, 2)
        own.update(inputs_ETI[e])
        torch.testing.assert_close(metric_EOI[e], wanda_metric(weight_EOI[e], own), rtol=1e-6, atol=0)
        mask_OI = Wanda().prune(weight_EOI.view(12, 8), fused, 36).mask_OI
        assert torch.equal(mask_OI.view(3, 4, 8)[e], Wanda().prune(weight_EOI[e], own, 12).mask_OI)


def test_an_expert_that_saw_nothing_is_pruned_like_the_others():
    statistics = Wanda().statistics(2, 8, 1)
    statistics.update(normal(6, 8), 1)
    removed_OI = ~Wanda().prune(normal(8, 8), statistics, 32).mask_OI
    assert removed_OI.sum(dim=1).tolist() == [4] * 8
    assert removed_OI[:4, :4].all()
