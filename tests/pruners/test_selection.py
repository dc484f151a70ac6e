"""Which weights go first, against a plain sort.

Shape suffixes: R comparison rows, W width of a comparison row.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_turn import in_turn

from selfprune.errors import ConfigError, PruningError
from selfprune.pruners import selection
from selfprune.pruners.selection import (
    lowest_of_group,
    lowest_round_robin,
    parse_pattern,
    pattern_width,
    rank_round_robin,
    untied,
)


def in_turns(scores_RW):
    """The order of rows that take turns, as a list of places, by the definition."""
    rows = scores_RW.tolist()
    orders = [sorted(range(len(row)), key=row.__getitem__) for row in rows]
    places = []
    for turn in range(scores_RW.shape[1]):
        next_of = [(rows[r][orders[r][turn]], r) for r in range(len(rows))]
        places += [(r, orders[r][turn]) for _, r in sorted(next_of)]
    return places


@st.composite
def score_matrices(draw):
    """Random scores, some with many ties, some infinite, in the dtypes that pruners compare in."""
    n_rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    tied = st.sampled_from([-torch.inf, -1.0, 0.0, -0.0, 0.5, 2.0, torch.inf])
    values = st.floats(-1e6, 1e6, width=32) if draw(st.booleans()) else tied
    scores = draw(st.lists(values, min_size=n_rows * width, max_size=n_rows * width))
    return torch.tensor(scores, dtype=draw(st.sampled_from([torch.float32, torch.float64]))).view(n_rows, width)


@given(score_matrices())
def test_the_ranks_are_the_order_of_rows_that_take_turns(scores_RW):
    ranks_RW = rank_round_robin(scores_RW)
    assert ranks_RW.dtype is torch.int32
    for rank, (r, w) in enumerate(in_turns(scores_RW)):
        assert ranks_RW[r, w] == rank


@given(score_matrices(), st.sampled_from([1, 7, 16, selection.CHUNK_ELEMENTS]))
def test_the_lowest_are_those_of_lowest_rank_whatever_is_looked_at_together(scores_RW, chunk_elements):
    before_RW, ranks_RW = scores_RW.clone(), rank_round_robin(scores_RW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "CHUNK_ELEMENTS", chunk_elements)
        for n_pruned in range(scores_RW.numel() + 1):
            goes_RW = lowest_round_robin(scores_RW, n_pruned)
            assert goes_RW.dtype is torch.bool
            assert torch.equal(goes_RW, ranks_RW < n_pruned)
    assert torch.equal(scores_RW, before_RW)


@given(score_matrices())
def test_the_lowest_of_a_group_are_the_first_of_its_own_order(scores_CM):
    places_CM = scores_CM.argsort(dim=1, stable=True).argsort(dim=1)
    for n_lowest in range(scores_CM.shape[1] + 1):
        goes_MC = lowest_of_group(scores_CM.T, n_lowest)
        assert goes_MC.dtype is torch.bool
        assert torch.equal(goes_MC.T, places_CM < n_lowest)


@pytest.mark.parametrize("chunk_elements", [99, 100, 12_345, 2**20])
def test_chunks_of_many_rows_meet_without_a_gap(chunk_elements, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK_ELEMENTS", chunk_elements)
    scores_RW = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0)).mul(20).round()
    ranks_RW = rank_round_robin(scores_RW)
    for n_pruned in (0, 1, 999, 1000, 1001, 50_000, 99_999, 100_000):
        assert torch.equal(lowest_round_robin(scores_RW, n_pruned), ranks_RW < n_pruned), n_pruned


def test_a_transposed_view_is_looked_at_like_its_copy():
    scores_RW = torch.randn(12, 7, generator=torch.Generator().manual_seed(0)).round().T
    for n_pruned in range(0, 85, 4):
        assert torch.equal(lowest_round_robin(scores_RW, n_pruned), lowest_round_robin(scores_RW.contiguous(), n_pruned))


@in_turn(("pattern", "expected"), [("2:4", (2, 4)), ("1:2", (1, 2)), ("15:16", (15, 16))])
def test_a_pattern_says_how_many_are_kept_of_how_many(pattern, expected):
    assert parse_pattern(pattern) == expected


@in_turn("pattern", ["", ":", "2", "4:2", "4:4", "0:4", "2:4:8", "a:b", "-1:4", "2 of 4", "2:", ":4", " 2:4", "2.0:4", "²:4"])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(ConfigError) as error:
        parse_pattern(pattern)
    assert f"must read N:M with 0 < N < M (N weights of every M are kept), got {pattern!r}; for example 2:4" in str(error.value)


def test_the_width_of_a_pattern_must_divide_that_of_the_matrix():
    assert pattern_width("1:3", 12) == 3
    with pytest.raises(PruningError, match="pattern 1:5 needs an input width divisible by 5, got 12; choose another pattern"):
        pattern_width("1:5", 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_at_zero_are_broken_by_magnitude_and_other_scores_stay(dtype):
    weight_OI = torch.tensor([[3.0, -1.0, 0.0, 2.0, -1e-38, 1e38, 5.0]], dtype=dtype)
    scores_OI = torch.tensor([[0.0, 0.0, 0.0, 0.25, 0.0, 0.0, 0.25]])
    keys_OI = untied(scores_OI, weight_OI)
    assert keys_OI[scores_OI > 0].tolist() == [0.25, 0.25]
    assert keys_OI.argsort(stable=True).tolist() == [[2, 4, 1, 0, 5, 3, 6]]
    assert keys_OI.isfinite().all()
    assert scores_OI.tolist() == [[0.0, 0.0, 0.0, 0.25, 0.0, 0.0, 0.25]]


@in_turn("scores", [[[1.0, 0.5]], [[0.0, 0.5]], [[]]])
def test_scores_that_are_zero_for_zeros_alone_are_handed_through(scores):
    scores_OI = torch.tensor(scores)
    assert untied(scores_OI, scores_OI.clone()) is scores_OI
