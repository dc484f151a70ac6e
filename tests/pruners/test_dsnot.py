"""DSnoT against a plain loop over rows, and what its swaps must never do.

Shape suffixes: O out, I in, N sequences, T tokens, E experts.
"""

import math

import pytest
import torch
from in_turn import in_turn

from selfprune.errors import ConfigError
from selfprune.pruners.selection import parse_pattern
from selfprune.pruners.weights import dsnot
from selfprune.pruners.weights.dsnot import DSnoT
from selfprune.pruners.weights.wanda import Wanda
from selfprune.statistics.input_moments import InputMoments

N_OUT, N_IN = 12, 24
LEVEL = N_OUT * N_IN // 2
PATTERNS = ["", "2:4", "4:8", "1:4"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

every_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern or "rows")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(n_in=N_IN, seed=1, n_sequences=3, n_tokens=5):
    """Channels of different means and spreads; without means there would be nothing to swap for."""
    spread_I = normal(n_in, seed=seed + 100).exp()
    return normal(n_sequences, n_tokens, n_in, seed=seed) * spread_I + normal(n_in, seed=seed + 200)


def gathered(inputs_NTI):
    statistics = InputMoments(1, inputs_NTI.shape[-1], len(inputs_NTI))
    statistics.update(inputs_NTI)
    return statistics


def level(pattern, n_weights=N_OUT * N_IN):
    if not pattern:
        return n_weights // 2
    n_kept, width = parse_pattern(pattern)
    return n_weights // width * (width - n_kept)


def removed(pruner, weight_OI, n_pruned, inputs_NTI=None):
    statistics = gathered(inputs(weight_OI.shape[1]) if inputs_NTI is None else inputs_NTI)
    return ~pruner.prune(weight_OI, statistics, n_pruned).kept


def errors(weight_OI, statistics, removed_OI):
    """|ε| of every row [O]."""
    contributions_OI = weight_OI.float() * statistics.mean_totals()
    return (contributions_OI.double() * removed_OI).sum(dim=1).abs()


def row_by_loop(pruner, contribution, metric, variance, gone):
    """The rule for one row, told with lists: the removed channels after all swaps, and how many swaps there were."""
    channels = range(len(contribution))
    initially_gone, moved = set(gone), set()
    error = sum(contribution[j] for j in gone)
    first, gone, n_swaps = math.copysign(1, error), set(gone), 0
    for _ in range(pruner.max_cycles):
        side = math.copysign(1, error)
        growable = [j for j in initially_gone - moved if contribution[j] * side > 0]
        if abs(error) <= pruner.update_threshold or not growable:
            break
        grown = max(growable, key=lambda j: side * contribution[j] / variance[j] ** pruner.regrowing_variance_power)
        moved.add(grown)
        if pruner.pattern:
            width = parse_pattern(pruner.pattern)[1]
            can_fall = [j for j in channels if j // width == grown // width and j not in initially_gone | moved]
        else:
            can_fall = [j for j in channels if contribution[j] * side < 0 and j not in initially_gone | moved]
        if not can_fall:
            continue
        fallen = min(can_fall, key=metric.__getitem__)
        after = error + contribution[fallen] - contribution[grown]
        if abs(after) >= abs(error) or (pruner.same_sign and after * first <= 0):
            break
        moved.add(fallen)
        gone, error, n_swaps = gone - {grown} | {fallen}, after, n_swaps + 1
    return gone, n_swaps


def by_loops(pruner, weight_OI, inputs_NTI, n_pruned):
    """The removed weights [O, I] and the number of swaps, from sums in fp64."""
    before_OI = ~Wanda(pattern=pruner.pattern).prune(weight_OI, gathered(inputs_NTI), n_pruned).kept
    inputs_NTI, n_in = inputs_NTI.double(), weight_OI.shape[1]
    mean = [float(inputs_NTI[..., j].sum()) / len(inputs_NTI) for j in range(n_in)]
    square = [float(inputs_NTI[..., j].square().sum()) / len(inputs_NTI) for j in range(n_in)]
    variance = []
    for j in range(n_in):
        of_sequences = []
        for sequence in inputs_NTI[..., j].tolist():
            middle = sum(sequence) / len(sequence)
            of_sequences.append(sum((x - middle) ** 2 for x in sequence) / len(sequence))
        variance.append(sum(of_sequences) / len(of_sequences))
    after_OI, n_swaps = torch.zeros_like(before_OI), 0
    for i, row in enumerate(weight_OI.double().tolist()):
        contribution = [w * m for w, m in zip(row, mean, strict=True)]
        metric = [abs(w) * math.sqrt(s) for w, s in zip(row, square, strict=True)]
        gone, n_row = row_by_loop(pruner, contribution, metric, variance, before_OI[i].nonzero().flatten().tolist())
        after_OI[i, sorted(gone)] = True
        n_swaps += n_row
    return after_OI, n_swaps


OPTIONS = [
    {},
    {"same_sign": True},
    {"max_cycles": 2},
    {"update_threshold": 2.0},
    {"regrowing_variance_power": 0.0},
    {"regrowing_variance_power": 0.5},
]


@every_pattern
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_swaps_equal_a_plain_loop_over_the_rows(pattern, options):
    pruner = DSnoT(pattern=pattern, **options)
    n_swaps = 0
    for seed in range(5):
        weight_OI, inputs_NTI = normal(N_OUT, N_IN, seed=seed), inputs(seed=seed + 10)
        expected_OI, n_of_seed = by_loops(pruner, weight_OI, inputs_NTI, level(pattern))
        assert torch.equal(removed(pruner, weight_OI, level(pattern), inputs_NTI), expected_OI)
        n_swaps += n_of_seed
    assert n_swaps > 20


@in_turn("n_pruned", [1, 5, 12, 30, 97, 143, 200, 287])
def test_the_swaps_equal_a_plain_loop_at_counts_that_the_rows_do_not_share_evenly(n_pruned):
    weight_OI = normal(N_OUT, N_IN)
    expected_OI, _ = by_loops(DSnoT(), weight_OI, inputs(), n_pruned)
    assert torch.equal(removed(DSnoT(), weight_OI, n_pruned), expected_OI)


@pytest.mark.parametrize("same_sign", [False, True])
@pytest.mark.parametrize("n_per_row", [2, 3, 5])
def test_the_swaps_equal_a_plain_loop_where_rows_run_out_of_candidates(n_per_row, same_sign):
    pruner, n_swaps = DSnoT(same_sign=same_sign), 0
    for seed in range(5):
        weight_OI, inputs_NTI = normal(100, 6, seed=seed), inputs(6, seed=seed + 10)
        expected_OI, n_of_seed = by_loops(pruner, weight_OI, inputs_NTI, 100 * n_per_row)
        assert torch.equal(removed(pruner, weight_OI, 100 * n_per_row, inputs_NTI), expected_OI)
        n_swaps += n_of_seed
    assert n_swaps > 10


@every_pattern
def test_the_swaps_equal_a_plain_loop_beside_dead_channels_and_zero_weights(pattern):
    weight_OI, inputs_NTI = normal(N_OUT, N_IN), inputs()
    inputs_NTI[..., 7], weight_OI[:, 4], weight_OI[3, ::2] = 0, 0, 0
    expected_OI, n_swaps = by_loops(DSnoT(pattern=pattern), weight_OI, inputs_NTI, level(pattern))
    assert n_swaps > 5
    assert torch.equal(removed(DSnoT(pattern=pattern), weight_OI, level(pattern), inputs_NTI), expected_OI)


def test_the_options_change_what_is_removed():
    weight_OI = normal(200, N_IN)
    masks = [removed(DSnoT(**options), weight_OI, 100 * N_IN) for options in OPTIONS]
    assert [options for options, mask_OI in zip(OPTIONS, masks, strict=True) if torch.equal(mask_OI, masks[0])] == [{}]


@every_pattern
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_groups_keep_their_counts_and_no_row_ends_with_more_expected_error(pattern, dtype):
    n_swapped = 0
    for seed in range(5):
        weight_OI = normal(N_OUT, N_IN, seed=seed).to(dtype)
        statistics = gathered(inputs(seed=seed + 10).to(dtype))
        before_OI = ~Wanda(pattern=pattern).prune(weight_OI, statistics, level(pattern)).kept
        pruned = DSnoT(pattern=pattern).prune(weight_OI, statistics, level(pattern))
        after_OI = ~pruned.kept
        assert pruned.weight_OI is None
        width = parse_pattern(pattern)[1] if pattern else N_IN
        assert torch.equal(after_OI.view(-1, width).sum(dim=1), before_OI.view(-1, width).sum(dim=1))
        ours_O, before_O = errors(weight_OI, statistics, after_OI), errors(weight_OI, statistics, before_OI)
        assert (ours_O <= before_O).all()
        assert ours_O.sum() < 0.8 * before_O.sum()
        n_swapped += int((after_OI & ~before_OI).sum())
    assert n_swapped > 20


@pytest.mark.parametrize("reference_swaps", [False, True])
def test_without_cycles_or_errors_above_the_threshold_it_is_wanda(reference_swaps):
    weight_OI = normal(N_OUT, N_IN)
    expected_OI = removed(Wanda(), weight_OI, LEVEL)
    for options in ({"max_cycles": 0}, {"update_threshold": 1e6}):
        assert torch.equal(removed(DSnoT(reference_swaps=reference_swaps, **options), weight_OI, LEVEL), expected_OI)
    assert not torch.equal(removed(DSnoT(reference_swaps=reference_swaps), weight_OI, LEVEL), expected_OI)


@every_pattern
def test_the_first_swap_is_the_reference_s_wherever_that_one_lowers_the_error(pattern):
    weight_OI, statistics = normal(64, N_IN), gathered(inputs())
    n_pruned = level(pattern, 64 * N_IN)
    wanda_OI = ~Wanda(pattern=pattern).prune(weight_OI, statistics, n_pruned).kept
    ours_OI, theirs_OI = (
        ~DSnoT(pattern=pattern, max_cycles=1, same_sign=True, reference_swaps=is_reference)
        .prune(weight_OI, statistics, n_pruned)
        .kept
        for is_reference in (False, True)
    )
    lowers_O = errors(weight_OI, statistics, theirs_OI) < errors(weight_OI, statistics, wanda_OI)
    assert 0 < lowers_O.sum() < 64
    assert torch.equal(ours_OI, torch.where(lowers_O[:, None], theirs_OI, wanda_OI))


def test_rows_that_have_stopped_move_on_only_with_reference_swaps():
    weight_OI, statistics = normal(64, 8), gathered(inputs(8))
    changed = {}
    for is_reference in (False, True):
        pruner = DSnoT(reference_swaps=is_reference)
        together_OI = pruner.prune(weight_OI, statistics, 256).kept
        alone_OI = torch.cat([pruner.prune(row_I[None], statistics, 4).kept for row_I in weight_OI])
        changed[is_reference] = int((together_OI != alone_OI).sum())
    assert changed[False] == 0
    assert changed[True] > 0


@every_pattern
def test_rows_are_swapped_alike_however_many_are_looked_at_together(pattern, monkeypatch):
    weight_OI = normal(N_OUT, N_IN)
    at_once_OI = removed(DSnoT(pattern=pattern), weight_OI, level(pattern))
    monkeypatch.setattr(dsnot, "CHUNK_ELEMENTS", 5 * N_IN)
    assert torch.equal(removed(DSnoT(pattern=pattern), weight_OI, level(pattern)), at_once_OI)


def test_the_rows_take_turns():
    for n_pruned in (1, 2, 47, 97, 200, N_OUT * N_IN - 1):
        per_row = removed(DSnoT(), normal(N_OUT, N_IN), n_pruned).sum(dim=1)
        assert per_row.sum() == n_pruned
        assert per_row.max() - per_row.min() <= 1


@every_pattern
def test_channels_without_weights_or_inputs_or_variance_are_pruned_exactly(pattern):
    pruner, weight_OI, constant_NTI, dead_NTI = DSnoT(pattern=pattern), normal(N_OUT, N_IN), inputs(), inputs()
    constant_NTI[..., 7], dead_NTI[..., 7] = 0.1, 0
    assert removed(pruner, weight_OI, level(pattern), constant_NTI).sum() == level(pattern)
    of_dead_OI = removed(pruner, weight_OI, level(pattern), dead_NTI)
    assert of_dead_OI.sum() == level(pattern)
    assert torch.equal(of_dead_OI[:, 7], removed(Wanda(pattern=pattern), weight_OI, level(pattern), dead_NTI)[:, 7])
    weight_OI[:, 7] = 0
    of_zero_OI = removed(pruner, weight_OI, level(pattern))
    assert of_zero_OI.sum() == level(pattern)
    assert pattern or of_zero_OI[:, 7].all()


def test_a_removed_weight_of_a_constant_channel_is_the_first_to_grow():
    weight_OI, inputs_NTI = torch.ones(1, 4), torch.zeros(2, 4, 4)
    inputs_NTI[..., 0] = 0.5
    inputs_NTI[:, ::2, 1], inputs_NTI[:, 1::2, 1] = 1.5, 0.5
    inputs_NTI[:, ::2, 2], inputs_NTI[:, 1::2, 2] = -1.1, -1.3
    inputs_NTI[:, ::2, 3], inputs_NTI[:, 1::2, 3] = 8.0, 9.0
    assert removed(Wanda(), weight_OI, 2, inputs_NTI).tolist() == [[True, True, False, False]]
    for reference_swaps in (False, True):
        pruner = DSnoT(max_cycles=1, reference_swaps=reference_swaps)
        assert removed(pruner, weight_OI, 2, inputs_NTI).tolist() == [[False, True, True, False]]
    heedless = DSnoT(max_cycles=1, regrowing_variance_power=0)
    assert removed(heedless, weight_OI, 2, inputs_NTI).tolist() == [[True, False, True, False]]


@in_turn("name", ["max_cycles", "update_threshold", "regrowing_variance_power"])
@in_turn("value", [-1, math.nan, math.inf])
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"pruner.{name} must be a finite number from 0 on, got {value}"):
        DSnoT(**{name: value})


def test_the_ranks_are_those_of_wanda():
    weight_OI, statistics = normal(N_OUT, N_IN), gathered(inputs())
    for pattern in PATTERNS:
        expected_OI = Wanda(pattern=pattern).ranks(weight_OI, statistics)
        assert torch.equal(DSnoT(pattern=pattern).ranks(weight_OI, statistics), expected_OI)


@every_pattern
@pytest.mark.parametrize("reference_swaps", [False, True])
def test_every_expert_is_swapped_by_the_inputs_that_it_saw(pattern, reference_swaps):
    pruner = DSnoT(pattern=pattern, reference_swaps=reference_swaps)
    weight_EOI = normal(3, 4, N_IN)
    fused = pruner.statistics(3, N_IN, 2)
    alone = [pruner.statistics(1, N_IN, 2) for _ in range(3)]
    for e in range(3):
        for tokens_TI in inputs(seed=e, n_sequences=2, n_tokens=4 + e):
            fused.update(tokens_TI, e)
            alone[e].update(tokens_TI)
    mask_EOI = pruner.prune(weight_EOI.view(12, N_IN), fused, level(pattern)).kept.view(3, 4, N_IN)
    for e in range(3):
        expected_OI = pruner.prune(weight_EOI[e], alone[e], level(pattern) // 3).kept
        assert torch.equal(mask_EOI[e], expected_OI)
