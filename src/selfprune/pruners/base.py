"""The pruner contract, and the ranking that all score-based pruners share.

Shape suffixes: O out, I in, R comparison rows, W width of a comparison row.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from selfprune.errors import ConfigError, PruningError
from selfprune.pruners.statistics import Statistics


class Scope(str, Enum):
    """The weights that compete with each other."""

    ROW = "ROW"
    MATRIX = "MATRIX"


@dataclass(frozen=True)
class PrunedWeight:
    """What a pruner decided.

    Attributes:
        mask_OI: True where a weight is kept.
        weight_OI: new values of the weights, zero where pruned; None when kept weights stay as they are.
    """

    mask_OI: Tensor
    weight_OI: Tensor | None = None


class Pruner(ABC):
    """Decides which items go, given weights, statistics and level.

    Example:
        >>> pruner = Wanda()
        >>> statistics = pruner.statistics(n_row_groups=1, n_in=weight_OI.shape[1], n_sequences=8)
        >>> statistics.update(input_NTI)
        >>> pruned = pruner.prune(weight_OI, statistics, n_pruned=100)
    """

    @abstractmethod
    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """An empty accumulator of what this pruner needs gathered about a unit's input.

        Args:
            n_row_groups: how many equal groups of output rows have inputs of their own (experts); 1 for a Linear.
            n_in: input width.
            n_sequences: calibration sequences that will come in all.
        """

    @abstractmethod
    def prune(self, weight_OI: Tensor, statistics: Statistics, n_pruned: int) -> PrunedWeight:
        """Removes exactly `n_pruned` weights.

        Raises:
            PruningError: when the count is out of range or the statistics are not finite.
        """


@dataclass
class ScorePruner(Pruner):
    """A pruner whose masks are nested: every weight has a rank, and level n removes the ranks below n.

    Attributes:
        scope: the weights that compete with each other: an output row, or the whole matrix.
        pattern: `N:M` keeps N of every M consecutive input columns (as in 2:4) before any group gives up more; empty for none.
    """

    scope: Scope = Scope.ROW
    pattern: str = ""

    def __post_init__(self) -> None:
        if self.pattern:
            _parse_pattern(self.pattern)

    @abstractmethod
    def scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """The importance of each weight [O, I] in fp32; the lowest go first."""

    def ranks(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """The order in which the weights go: a permutation of 0..O*I-1 as int32 [O, I].

        Within a comparison row the order is ascending by score, ties by index (as in the published Wanda). Rows take
        turns: all give up their n-th weight before any gives up its (n+1)-th, those with the lowest score first. So any
        total is met exactly, and totals divisible by the number of rows prune every row alike.

        Raises:
            PruningError: when a score is not finite, or the pattern does not divide the width.
        """
        scores_OI = self.scores(weight_OI, statistics)
        if not torch.isfinite(scores_OI).all():
            raise PruningError(
                "the scores of a unit are not finite: its weights or its calibration inputs hold NaN or infinity; "
                "load the model in a wider dtype (model.dtype=float32) or check the checkpoint"
            )
        n_out, n_in = scores_OI.shape
        if self.pattern:
            width = _parse_pattern(self.pattern)[1]
            if n_in % width:
                raise PruningError(
                    f"pattern {self.pattern} needs an input width divisible by {width}, got {n_in}; choose another pattern"
                )
        else:
            width = n_in if self.scope is Scope.ROW else n_out * n_in
        return _rank_in_turns(scores_OI.reshape(-1, width)).reshape(n_out, n_in)

    def prune(self, weight_OI: Tensor, statistics: Statistics, n_pruned: int) -> PrunedWeight:
        """Keeps the ranks from `n_pruned` on."""
        if not 0 <= n_pruned <= weight_OI.numel():
            raise PruningError(f"a unit of {weight_OI.numel()} weights cannot lose {n_pruned}; ask for 0 to {weight_OI.numel()}")
        return PrunedWeight(self.ranks(weight_OI, statistics) >= n_pruned)

    def level_fraction(self) -> float | None:
        """The one sparsity besides 0 that a unit may have under the pattern; None without one."""
        if not self.pattern:
            return None
        n_kept, width = _parse_pattern(self.pattern)
        return (width - n_kept) / width


def _rank_in_turns(scores_RW: Tensor) -> Tensor:
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


def _parse_pattern(pattern: str) -> tuple[int, int]:
    n_kept, _, width = pattern.partition(":")
    if not (n_kept.isdigit() and width.isdigit() and 0 < int(n_kept) < int(width)):
        raise ConfigError(
            f"pruner.pattern must read N:M with 0 < N < M (N weights of every M are kept), got {pattern!r}; for example 2:4"
        )
    return int(n_kept), int(width)
