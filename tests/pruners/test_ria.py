"""RIA, and the channel order that it forms N:M groups by.

Shape suffixes: O out, I in, N sequences, T tokens, E experts.
"""

import itertools
import math

import pytest
import torch
from in_turn import in_turn

from selfprune.errors import ConfigError
from selfprune.pruners.weight_pruner import Scope
from selfprune.pruners.weights.ria import RIA, _assigned, _dealt, channel_order

N_OUT, N_IN = 12, 24
SETTINGS = [
    {},
    {"scope": Scope.ROW},
    {"pattern": "2:4"},
    {"pattern": "2:4", "permute_channels": True},
    {"pattern": "4:8", "permute_channels": True},
    {"pattern": "1:4", "permute_channels": True},
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gathered(pruner, inputs_NTI):
    statistics = pruner.statistics(1, inputs_NTI.shape[-1], len(inputs_NTI))
    statistics.update(inputs_NTI)
    return statistics


def removed(pruner, weight_OI, n_pruned, inputs_NTI=None):
    inputs_NTI = normal(3, 5, weight_OI.shape[1], seed=1) if inputs_NTI is None else inputs_NTI
    return ~pruner.prune(weight_OI, gathered(pruner, inputs_NTI), n_pruned).kept


def by_loops(weight_OI, inputs_NTI, power):
    """The scores as the formula reads, one weight at a time in fp64."""
    n_out, n_in = weight_OI.shape
    size = [[abs(float(weight_OI[i, j])) for j in range(n_in)] for i in range(n_out)]
    scores = torch.zeros(n_out, n_in, dtype=torch.float64)
    for i, j in itertools.product(range(n_out), range(n_in)):
        norm = math.sqrt(sum(float(x) ** 2 for x in inputs_NTI[..., j].flatten()) / len(inputs_NTI))
        column, row = sum(size[k][j] for k in range(n_out)), sum(size[i])
        relative = (size[i][j] / column if column else 0) + (size[i][j] / row if row else 0)
        scores[i, j] = relative * norm**power
    return scores


@in_turn("power", [0.0, 0.5, 1.0])
@in_turn("dtype", DTYPES)
def test_the_scores_equal_the_formula(power, dtype):
    weight_OI, inputs_NTI = normal(7, 12).to(dtype), normal(3, 5, 12, seed=1)
    weight_OI[2], weight_OI[:, 4], inputs_NTI[..., 9] = 0, 0, 0
    pruner = RIA(activation_power=power)
    scores_OI = pruner.scores(weight_OI, gathered(pruner, inputs_NTI))
    assert scores_OI.dtype is torch.float32
    torch.testing.assert_close(scores_OI.double(), by_loops(weight_OI, inputs_NTI, power), rtol=1e-5, atol=0)


@in_turn("scope", list(Scope))
@in_turn("n_per_row", [1, 6, 11])
def test_the_lowest_of_the_row_or_of_the_matrix_go(scope, n_per_row):
    weight_OI, inputs_NTI = normal(7, 12), normal(3, 5, 12, seed=1)
    scores_OI = by_loops(weight_OI, inputs_NTI, 0.5)
    expected_OI = torch.zeros(7, 12, dtype=torch.bool)
    if scope is Scope.ROW:
        expected_OI.scatter_(1, scores_OI.argsort(dim=1)[:, :n_per_row], True)
    else:
        expected_OI.view(-1)[scores_OI.view(-1).argsort()[: 7 * n_per_row]] = True
    assert torch.equal(removed(RIA(scope=scope), weight_OI, 7 * n_per_row, inputs_NTI), expected_OI)


def test_the_whole_matrix_competes_by_default():
    weight_OI = normal(N_OUT, N_IN)
    assert torch.equal(removed(RIA(), weight_OI, 100), removed(RIA(scope=Scope.MATRIX), weight_OI, 100))
    assert removed(RIA(), weight_OI, 96).sum(dim=1).unique().numel() > 1


@in_turn("power", [-0.1, math.nan, math.inf])
def test_a_power_out_of_range_is_refused(power):
    with pytest.raises(ConfigError, match=r"pruner.activation_power must be a finite number from 0 on, got"):
        RIA(activation_power=power)


def test_permuting_channels_without_a_pattern_is_refused():
    with pytest.raises(ConfigError, match=r"pruner.pattern is empty; set one \(pruner.pattern=2:4\)"):
        RIA(permute_channels=True)


@every_setting
def test_every_expert_is_a_matrix_of_its_own(settings):
    pruner, weight_EOI, inputs_ETI = (
        RIA(**settings),
        normal(3, 4, 8) * torch.tensor([1.0, 10.0, 0.1])[:, None, None],
        normal(3, 10, 8),
    )
    fused = pruner.statistics(3, 8, 2)
    for e in range(3):
        fused.update(inputs_ETI[e], e)
    alone = [pruner.statistics(1, 8, 2) for _ in range(3)]
    for e in range(3):
        alone[e].update(inputs_ETI[e])
    ranks_EOI = pruner.ranks(weight_EOI.view(12, 8), fused).view(3, 4, 8)
    assert torch.equal(ranks_EOI.flatten().sort().values, torch.arange(96, dtype=torch.int32))
    for n_pruned in range(0, 97, 5):
        mask_EOI = pruner.prune(weight_EOI.view(12, 8), fused, n_pruned).kept.view(3, 4, 8)
        assert torch.equal(mask_EOI, ranks_EOI >= n_pruned)
        for e in range(3):
            n_own = n_pruned // 3 + (e < n_pruned % 3)
            assert torch.equal(mask_EOI[e], pruner.prune(weight_EOI[e], alone[e], n_own).kept)


def kept(scores_OI, order, n_kept, width):
    """The importance that groups of consecutive channels of the order keep, group by group and row by row."""
    groups = [list(order[start : start + width]) for start in range(0, len(order), width)]
    rows = scores_OI.double().tolist()
    return sum(sum(sorted(row[channel] for channel in group)[-n_kept:]) for row in rows for group in groups)


@in_turn(("pattern", "n_kept", "width"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4), ("3:4", 3, 4), ("1:2", 1, 2)])
@in_turn("spread", [0.0, 1.0, 3.0])
def test_permuted_groups_keep_no_less_and_n_of_every_m(pattern, n_kept, width, spread):
    for seed in range(5):
        weight_OI, inputs_NTI = normal(9, 32, seed=seed), normal(3, 5, 32, seed=seed + 50)
        inputs_NTI *= (spread * normal(32, seed=seed + 100)).exp()
        plain, permuting = RIA(pattern=pattern), RIA(pattern=pattern, permute_channels=True)
        scores_OI = plain.scores(weight_OI, gathered(plain, inputs_NTI))
        n_pruned = 9 * 32 * (width - n_kept) // width
        mask_OI = ~removed(permuting, weight_OI, n_pruned, inputs_NTI)
        order_I = channel_order(scores_OI, n_kept, width)
        assert torch.equal(order_I.sort().values, torch.arange(32))
        assert (mask_OI[:, order_I].view(-1, width).sum(dim=1) == n_kept).all()
        with_permutation = float((scores_OI.double() * mask_OI).sum())
        without = float((scores_OI.double() * ~removed(plain, weight_OI, n_pruned, inputs_NTI)).sum())
        assert with_permutation == pytest.approx(kept(scores_OI, order_I.tolist(), n_kept, width), rel=1e-9)
        assert with_permutation > without


def test_channels_are_dealt_to_and_fro_by_their_totals():
    totals_I = torch.tensor([1.0, 8.0, 3.0, 6.0, 5.0, 4.0, 7.0, 2.0])
    scores_OI = torch.stack((0.25 * totals_I, 0.75 * totals_I))
    assert totals_I[_dealt(scores_OI, 4)].tolist() == [8, 5, 4, 1, 7, 6, 3, 2]
    assert totals_I[_dealt(scores_OI, 2)].tolist() == [8, 1, 7, 2, 6, 3, 5, 4]


def test_important_channels_side_by_side_all_stay():
    # Half of the channels carry all importance and lie in the same groups, which without a permutation must give up half of it.
    scores_OI = normal(6, 16, seed=3).abs() + 1
    scores_OI[:, 8:] = 0
    total = float(scores_OI.double().sum())
    assert kept(scores_OI, range(16), 2, 4) < 0.7 * total
    assert kept(scores_OI, channel_order(scores_OI, 2, 4).tolist(), 2, 4) == pytest.approx(total, rel=1e-12)


def test_an_order_that_loses_nothing_is_left_alone():
    scores_OI = normal(6, 16, seed=3).abs() + 1
    scores_OI[:, 2::4], scores_OI[:, 3::4] = 0, 0
    assert channel_order(scores_OI, 2, 4).tolist() == list(range(16))
    assert channel_order(torch.zeros(6, 16), 2, 4).tolist() == list(range(16))


def test_dealing_that_keeps_less_than_the_given_order_is_not_started_from():
    # All totals are equal, so that the channels are dealt by index: the first and the last, which are rivals in row 0, meet.
    scores_OI = torch.tensor([[4.0, 0.0, 0.0, 4.0], [0.0, 4.0, 4.0, 0.0]])
    assert kept(scores_OI, [0, 1, 2, 3], 1, 2) == 16
    assert kept(scores_OI, [0, 3, 1, 2], 1, 2) == 8
    assert channel_order(scores_OI, 1, 2).tolist() == [0, 1, 2, 3]


def partitions(channels, width):
    """Every way to split the channels into groups."""
    if not channels:
        yield ()
        return
    for rest in itertools.combinations(channels[1:], width - 1):
        group = (channels[0], *rest)
        for others in partitions([c for c in channels if c not in group], width):
            yield (*group, *others)


@in_turn(("n_kept", "width", "n_channels"), [(1, 2, 6), (2, 4, 8), (1, 3, 6), (2, 3, 6)])
def test_the_order_is_close_to_the_best_of_all(n_kept, width, n_channels):
    gains = []
    for seed in range(12):
        scores_OI = normal(5, n_channels, seed=seed).abs() * (2 * normal(n_channels, seed=seed + 100)).exp()
        best = max(kept(scores_OI, order, n_kept, width) for order in partitions(list(range(n_channels)), width))
        given = kept(scores_OI, range(n_channels), n_kept, width)
        ours = kept(scores_OI, channel_order(scores_OI, n_kept, width).tolist(), n_kept, width)
        assert given - 1e-9 <= ours <= best + 1e-9
        gains.append((ours - given, best - given))
    assert sum(ours for ours, _ in gains) > 0.85 * sum(best for _, best in gains)


@in_turn(("n_kept", "width"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_every_assignment_is_the_best_of_all_permutations_at_its_place(n_kept, width):
    for seed in range(3):
        scores_OI = normal(24, 4 * width, seed=seed).abs()
        order = list(range(4 * width))
        for place in range(width):
            candidates = []
            for newcomers in itertools.permutations(order[place::width]):
                changed = order.copy()
                changed[place::width] = newcomers
                candidates.append((kept(scores_OI, changed, n_kept, width), changed))
            order = max(candidates)[1]
        assert _assigned(scores_OI, torch.arange(4 * width), n_kept, width).tolist() == order
