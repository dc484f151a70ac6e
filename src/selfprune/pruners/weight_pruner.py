"""What all pruners of single weights share: patterns, rows that compete, and what becomes of weights that saw no input.

Shape suffixes: O out, I in, R comparison rows, W width of a comparison row.
"""

from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from selfprune.errors import PruningError
from selfprune.pruners.base import PrunedUnit, Pruner
from selfprune.pruners.selection import lowest_round_robin, parse_pattern, pattern_width, rank_round_robin, untied
from selfprune.statistics.base import Statistics


class Scope(str, Enum):
    """The weights that compete with each other."""

    ROW = "ROW"
    MATRIX = "MATRIX"


@dataclass
class WeightPruner(Pruner):
    """A pruner whose items are single weights.

    It orders them by `scores`. One that changes the kept weights, or whose masks are not nested, says in `prune_seen` what it
    does instead.

    Of a unit, or an expert, that calibration never reached no pruner knows anything: its smallest weights go, as many as the
    pruner would take of it, and the others stay as they are.

    Attributes:
        pattern: `N:M` keeps N of every M consecutive input columns (as in 2:4) before any group gives up more; empty for none.
    """

    pattern: str = ""

    def __post_init__(self) -> None:
        if self.pattern:
            parse_pattern(self.pattern)

    @abstractmethod
    def scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """The importance of each weight [O, I] in fp32 without any update of others; the lowest go first."""

    @abstractmethod
    def prune_seen(self, weight_OI: Tensor, statistics: Statistics, n_pruned: int) -> PrunedUnit:
        """Removes exactly `n_pruned` weights; what it makes of groups of rows that were never seen does not matter.

        Raises:
            PruningError: when the count is out of range or the statistics are not finite.
        """

    def prune(self, weight_OI: Tensor, statistics: Statistics, n_pruned: int, ranks: Tensor | None = None) -> PrunedUnit:
        """Removes exactly `n_pruned` weights: `prune_seen`, and the smallest weights where nothing was seen.

        Raises:
            PruningError: when the count is out of range or the statistics are not finite.
        """
        unseen = statistics.unseen().tolist()
        if all(unseen):
            check_count(weight_OI, n_pruned)
            return PrunedUnit(self._largest(weight_OI, n_pruned))
        pruned = self.prune_seen(weight_OI, statistics, n_pruned)
        n_rows = len(weight_OI) // len(unseen)
        for group in (group for group, is_unseen in enumerate(unseen) if is_unseen):
            rows = slice(group * n_rows, (group + 1) * n_rows)
            pruned.kept[rows] = self._largest(weight_OI[rows], int((~pruned.kept[rows]).sum()))
            if pruned.weight_OI is not None:
                pruned.weight_OI[rows] = weight_OI[rows].masked_fill(~pruned.kept[rows], 0)
        return pruned

    def ranks(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """The order in which the weights go: a permutation of 0..O*I-1 as int32 [O, I].

        Within a comparison row the order is ascending by score, ties at zero by magnitude (the inputs of a column may all have
        been zero), others by index (as in the published Wanda). Rows take
        turns: all give up their n-th weight before any gives up its (n+1)-th, those with the lowest score first. So any
        total is met exactly, and totals divisible by the number of rows prune every row alike.

        Raises:
            PruningError: when a score is not finite, or the pattern does not divide the width.
        """
        scores_OI = untied(self.comparable_scores(weight_OI, statistics), weight_OI)
        return rank_round_robin(self._comparison_rows(scores_OI)).reshape(scores_OI.shape)

    def comparable_scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """The scores [O, I]; in groups of rows that were never seen the magnitudes, scaled to the mean score of the others."""
        scores_OI, unseen_G = self.scores(weight_OI, statistics), statistics.unseen().to(weight_OI.device)
        if not unseen_G.any():
            return scores_OI
        scores_GK = scores_OI.reshape(len(unseen_G), -1)
        magnitudes_GK = weight_OI.float().abs().reshape(scores_GK.shape)
        scale = scores_GK[~unseen_G].mean() / magnitudes_GK[~unseen_G].mean()
        # no mean where no group was seen, or all its weights are zero
        scaled_GK = magnitudes_GK * torch.where(scale > 0, scale, 1)
        return torch.where(unseen_G[:, None], scaled_GK, scores_GK).reshape(scores_OI.shape)

    def level_fraction(self) -> float | None:
        """The one sparsity besides 0 that a unit may have under the pattern; None without one."""
        if not self.pattern:
            return None
        n_kept, width = parse_pattern(self.pattern)
        return (width - n_kept) / width

    def level_option(self) -> str:
        """The pattern, as it was given."""
        return f"pruner.pattern={self.pattern}" if self.pattern else ""

    def input_multiple(self) -> int:
        """M of the pattern."""
        return parse_pattern(self.pattern)[1] if self.pattern else 1

    def _row_width(self, n_out: int, n_in: int) -> int:
        """How many weights compete with each other where there is no pattern."""
        return n_out * n_in

    def _largest(self, weight_OI: Tensor, n_pruned: int) -> Tensor:
        """True [O, I] where a weight stays when the smallest among those that compete go."""
        magnitudes_OI = weight_OI.float().abs()
        return lowest_round_robin(self._comparison_rows(magnitudes_OI), n_pruned).logical_not_().reshape(weight_OI.shape)

    def _comparison_rows(self, scores_OI: Tensor) -> Tensor:
        """The scores as [R, W], checked."""
        if scores_OI.numel() and not torch.isfinite(torch.stack(scores_OI.aminmax())).all():
            raise PruningError(
                "the scores of a unit are not finite: its weights or its calibration inputs hold NaN or infinity; "
                "load the model in a wider dtype (model.dtype=FLOAT32) or check the checkpoint"
            )
        n_out, n_in = scores_OI.shape
        if not self.pattern:
            return scores_OI.reshape(-1, self._row_width(n_out, n_in))
        return scores_OI.reshape(-1, pattern_width(self.pattern, n_in))


@dataclass
class ScorePruner(WeightPruner):
    """A pruner whose masks are nested: every weight has a rank, and level n removes the ranks below n.

    Attributes:
        scope: the weights that compete with each other: an output row, or the whole matrix.
        reference_threshold: over a whole matrix remove everything up to the threshold, one weight more than asked for (or
            several, where they tie), as the published implementations do; only for comparisons with them.
    """

    scope: Scope = Scope.ROW
    reference_threshold: bool = False

    def prune_seen(self, weight_OI: Tensor, statistics: Statistics, n_pruned: int) -> PrunedUnit:
        """Keeps the ranks from `n_pruned` on, without ranking all of them."""
        check_count(weight_OI, n_pruned)
        scores_OI = self.comparable_scores(weight_OI, statistics)
        scores_RW = self._comparison_rows(scores_OI)
        if self.reference_threshold and len(scores_RW) == 1:
            threshold = scores_RW.kthvalue(min(n_pruned + 1, scores_RW.numel()), dim=1).values
            return PrunedUnit((scores_RW > threshold).reshape(weight_OI.shape))
        scores_RW = untied(scores_OI, weight_OI).reshape(scores_RW.shape)
        return PrunedUnit(lowest_round_robin(scores_RW, n_pruned).logical_not_().reshape(weight_OI.shape))

    def _row_width(self, n_out: int, n_in: int) -> int:
        return n_in if self.scope is Scope.ROW else n_out * n_in


def check_count(weight_OI: Tensor, n_pruned: int) -> None:
    """Checks that a unit can lose so many weights.

    Raises:
        PruningError: when it cannot.
    """
    if not 0 <= n_pruned <= weight_OI.numel():
        raise PruningError(f"a unit of {weight_OI.numel()} weights cannot lose {n_pruned}; ask for 0 to {weight_OI.numel()}")


def check_level(weight_OI: Tensor, pattern: str, n_pruned: int) -> None:
    """Checks that a unit can lose so many weights, under a pattern by filling whole groups only.

    Raises:
        PruningError: when it cannot.
    """
    check_count(weight_OI, n_pruned)
    if not pattern:
        return
    n_kept, width = parse_pattern(pattern)
    pattern_width(pattern, weight_OI.shape[1])
    n_level = weight_OI.numel() // width * (width - n_kept)
    if n_pruned not in (0, n_level):
        raise PruningError(
            f"under the pattern {pattern} a unit of {weight_OI.numel()} weights loses 0 or {n_level}, got {n_pruned}"
        )
