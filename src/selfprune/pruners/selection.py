"""Which weights go first: the order of rows that take turns, and its beginning without the rest.

Shape suffixes: R comparison rows, W width of a comparison row, M members of a group, C groups side by side.
"""

import numpy as np
import torch
from torch import Tensor

from selfprune.errors import ConfigError, PruningError

CHUNK_ELEMENTS = 2**20
"""Scores that are looked at together, so that what a selection holds beside its mask stays small."""


def untied(scores_OI: Tensor, weight_OI: Tensor) -> Tensor:
    """The scores, but below zero where they are zero, the smaller the weight the lower; handed through where only zeros score 0.

    A column whose inputs all were zero scores zero throughout, and of its weights the smallest should go first.

    Args:
        scores_OI: in fp32, zero or more.
        weight_OI: the weights that they belong to.
    """
    if not scores_OI.numel() or scores_OI.amin() != 0:
        return scores_OI
    is_zero_OI = scores_OI == 0
    if not (is_zero_OI & (weight_OI != 0)).any():
        return scores_OI
    keys_OI = below_zero(weight_OI)
    return torch.where(is_zero_OI, keys_OI, scores_OI, out=keys_OI)


def below_zero(weight_OI: Tensor) -> Tensor:
    """Finite numbers of zero or less in fp32, the smaller the weight the lower."""
    return weight_OI.abs().float().reciprocal_().clamp_(max=torch.finfo(torch.float32).max).neg_()


def rank_round_robin(scores_RW: Tensor) -> Tensor:
    """The order in which weights go [R, W]: a permutation of 0..R*W-1 as int32, or int64 where that is too short.

    Within a row it is ascending by score, ties by index. Rows take turns: all give up their n-th weight before any gives up
    its (n+1)-th, those with the lowest score first.
    """
    n_rows, width = scores_RW.shape
    order_RW = torch.argsort(scores_RW, dim=1, stable=True)
    turns_RW = scores_RW.gather(1, order_RW)
    row_order_RW = torch.argsort(turns_RW, dim=0, stable=True)
    place_RW = torch.empty_like(row_order_RW)
    place_RW.scatter_(0, row_order_RW, torch.arange(n_rows, device=scores_RW.device)[:, None].expand_as(row_order_RW))
    rank_RW = place_RW + n_rows * torch.arange(width, device=scores_RW.device)
    ranks_RW = torch.empty_like(rank_RW)
    ranks_RW.scatter_(1, order_RW, rank_RW)
    return ranks_RW.to(torch.int32 if scores_RW.numel() < 2**31 else torch.int64)


def lowest_round_robin(scores_RW: Tensor, n_pruned: int) -> Tensor:
    """True for the `n_pruned` weights [R, W] that go first in the order of `rank_round_robin`."""
    n_rows, width = scores_RW.shape
    n_each, n_more = divmod(n_pruned, max(1, n_rows))
    goes_RW = torch.zeros(scores_RW.shape, dtype=torch.bool, device=scores_RW.device)
    if n_each == width or not n_pruned:
        return goes_RW.fill_(n_pruned > 0)
    rows = max(1, CHUNK_ELEMENTS // width)
    counts_R = torch.full((n_rows,), n_each, device=scores_RW.device)
    next_R = torch.empty(0)
    if n_more:
        next_R = torch.cat([kth_smallest(chunk_RW, n_each + 1) for chunk_RW in torch.split(scores_RW, rows)])
        counts_R[next_R.argsort(stable=True)[:n_more]] += 1
    for start in range(0, n_rows, rows):
        chunk_RW, some_R = scores_RW[start : start + rows], counts_R[start : start + rows]
        threshold_R = kth_smallest(chunk_RW, n_each)
        if n_more:
            threshold_R = torch.where(some_R > n_each, next_R[start : start + rows], threshold_R)
        chosen_RW = goes_RW[start : start + rows]
        torch.le(chunk_RW, threshold_R[:, None], out=chosen_RW)
        if bool((chosen_RW.sum(dim=1) > some_R).any()):
            # ties at the threshold: the first by index go
            tied_RW = chunk_RW == threshold_R[:, None]
            left_R = some_R - (chosen_RW & ~tied_RW).sum(dim=1)
            chosen_RW &= ~(tied_RW & (tied_RW.cumsum(dim=1) > left_R[:, None]))
    return goes_RW


def lowest_of_group(scores_MC: Tensor, n_lowest: int) -> Tensor:
    """True for the `n_lowest` smallest of every column [M, C], ties by index.

    Meant for the few members of an N:M group, where comparing all pairs is far cheaper than sorting.
    """
    n_members = len(scores_MC)
    n_before_MC = torch.zeros(scores_MC.shape, dtype=torch.int16, device=scores_MC.device)
    for member in range(n_members - 1):
        is_before_MC = scores_MC[member] <= scores_MC[member + 1 :]
        n_before_MC[member + 1 :] += is_before_MC
        n_before_MC[member] += n_members - 1 - member - is_before_MC.sum(dim=0, dtype=torch.int16)
    return n_before_MC < n_lowest


def kth_smallest(scores_RW: Tensor, k: int) -> Tensor:
    """The k-th smallest score of every row [R], k from 1; minus infinity for k = 0."""
    if k == 0:
        return torch.full((len(scores_RW),), -torch.inf, device=scores_RW.device, dtype=scores_RW.dtype)
    if len(scores_RW) == 1 and scores_RW.device.type == "cpu":
        # torch would carry an index along for every score, which takes three times as long on one long row
        return torch.from_numpy(np.partition(scores_RW[0].numpy(), k - 1)[k - 1 : k])
    return scores_RW.kthvalue(k, dim=1).values


def parse_pattern(pattern: str) -> tuple[int, int]:
    """N and M of `N:M`.

    Raises:
        ConfigError: when it is no such pattern.
    """
    n_kept, _, width = pattern.partition(":")
    if not (n_kept.isdecimal() and width.isdecimal() and 0 < int(n_kept) < int(width)):
        raise ConfigError(
            f"pruner.pattern must read N:M with 0 < N < M (N weights of every M are kept), got {pattern!r}; for example 2:4"
        )
    return int(n_kept), int(width)


def pattern_width(pattern: str, n_in: int) -> int:
    """M of `N:M`, known to divide the input width.

    Raises:
        PruningError: when it does not.
    """
    width = parse_pattern(pattern)[1]
    if n_in % width:
        raise PruningError(f"pattern {pattern} needs an input width divisible by {width}, got {n_in}; choose another pattern")
    return width
