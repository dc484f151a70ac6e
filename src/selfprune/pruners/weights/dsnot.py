"""DSnoT: Wanda's mask, then swaps that cancel the expected error of every row (Zhang et al., 2024, arXiv 2310.08915).

Limits: only the mean of the error counts, so where inputs have a mean near zero there is nothing to win; under N:M the few
partners of a group cost more than the mean is worth, and the output error often ends above Wanda's. `update_threshold` is
absolute and so depends on the scale of the inputs.

Shape suffixes: O out, I in, N sequences, T tokens, G groups of rows with inputs of their own, R rows looked at together.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.pruners.base import PrunedUnit
from selfprune.pruners.selection import CHUNK_ELEMENTS, lowest_round_robin, parse_pattern, untied
from selfprune.pruners.weight_pruner import WeightPruner, check_level
from selfprune.pruners.weights.wanda import wanda_metric
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_moments import InputMoments


@dataclass
class DSnoT(WeightPruner):
    """Swaps kept weights for removed ones, row by row, while that brings the row's expected error nearer to zero.

    The expected error of a row is ε = Σ_removed W·m, with m the mean of the inputs. A cycle grows the removed weight whose
    contribution W·m cancels most of ε for its variance, and removes the kept weight of lowest Wanda score whose contribution
    has the other sign; under N:M it is the lowest of the same group, whatever its sign. No weight moves twice. A row stops
    when ε is small or the next swap would not make it smaller.

    Attributes:
        max_cycles: swaps of a row at the most.
        update_threshold: a row with |ε| up to this stops; in units of the layer's output, summed over the tokens of a sequence.
        regrowing_variance_power: how much the variance of an input speaks against growing its weight; 0 for not at all.
        same_sign: a row stops before ε changes its sign.
        reference_swaps: swap exactly as the published implementation does; only for comparisons with it. Swaps there may raise
            |ε|, rows that have stopped can change until all have, and counts and N:M groups may then be missed.
    """

    max_cycles: int = 50
    update_threshold: float = 0.1
    regrowing_variance_power: float = 1.0
    same_sign: bool = False
    reference_swaps: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_cycles", "update_threshold", "regrowing_variance_power"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"pruner.{name} must be a finite number from 0 on, got {getattr(self, name)}")

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """Squares, sums and variances of the inputs."""
        return InputMoments(n_row_groups, n_in, n_sequences)

    def scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """Wanda's |W| · sqrt(s) [O, I], which orders the weights before any swap."""
        assert isinstance(statistics, InputMoments)
        return wanda_metric(weight_OI, statistics.means())

    def prune_seen(self, weight_OI: Tensor, statistics: Statistics, n_pruned: int) -> PrunedUnit:
        """Wanda's mask at `n_pruned`, then the swaps."""
        assert isinstance(statistics, InputMoments)
        check_level(weight_OI, self.pattern, n_pruned)
        metric_OI = self.comparable_scores(weight_OI, statistics)
        if not self.reference_swaps:
            metric_OI = untied(metric_OI, weight_OI)
        removed_OI = lowest_round_robin(self._comparison_rows(metric_OI), n_pruned).reshape(metric_OI.shape)
        if 0 < n_pruned < weight_OI.numel():
            device, (n_out, n_in) = weight_OI.device, weight_OI.shape
            means_GI, divisors_GI = statistics.mean_totals().to(device), self._divisors(statistics).to(device)
            n_of_group = n_out // len(means_GI)
            n_rows = n_of_group if self.reference_swaps else max(1, CHUNK_ELEMENTS // n_in)
            for rows_R in torch.split(torch.arange(n_out, device=device), n_rows):
                group_R = rows_R // n_of_group
                contributions_RI = weight_OI[rows_R].float() * means_GI[group_R]
                sweep = _Sweep(self, removed_OI[rows_R], contributions_RI, metric_OI[rows_R], divisors_GI[group_R])
                removed_OI[rows_R] = sweep.run()
        return PrunedUnit(~removed_OI)

    def _row_width(self, n_out: int, n_in: int) -> int:
        return n_in

    def _divisors(self, statistics: InputMoments) -> Tensor:
        """Var(x)^power [G, I]."""
        divisors_GI = statistics.variances().pow(self.regrowing_variance_power)
        # The reference divides by a variance of zero, which puts a dead column's 0/0 before all others.
        return divisors_GI if self.reference_swaps else divisors_GI.clamp(min=torch.finfo(divisors_GI.dtype).tiny)


class _Sweep:
    """The swaps of some rows, all rows of a cycle at once."""

    def __init__(
        self, pruner: DSnoT, removed_RI: Tensor, contributions_RI: Tensor, metric_RI: Tensor, divisors_RI: Tensor
    ) -> None:
        self.pruner = pruner
        self.group_width = parse_pattern(pruner.pattern)[1] if pruner.pattern else 0
        self.removed_RI = removed_RI
        self.contributions_RI = contributions_RI
        self.error_R1 = contributions_RI.double().mul(removed_RI).sum(dim=1, keepdim=True)
        self.first_sign_R1 = self.error_R1.sign()
        self.goes_on_R1 = torch.ones_like(self.error_R1, dtype=torch.bool)
        # infinite where a weight cannot fall: it is removed, or has moved
        self.metric_RI = metric_RI.masked_fill(removed_RI, torch.inf)
        self.growable_RI = contributions_RI * removed_RI
        self.growing = _growing(self.growable_RI / divisors_RI)
        self.falling = _falling(self.metric_RI, contributions_RI)

    def run(self) -> Tensor:
        """The removed weights [R, I] after all cycles."""
        for _ in range(self.pruner.max_cycles):
            if not bool(self.goes_on_R1.any()):
                break
            self._cycle()
        return self.removed_RI

    def _cycle(self) -> None:
        error_R1 = self.error_R1
        grown_R1 = self.growing.take(error_R1 > 0)
        fallen_R1 = self._lowest_of_group(grown_R1) if self.group_width else self.falling.take(error_R1 < 0)
        fallen_value_R1 = self.contributions_RI.gather(1, fallen_R1)
        after_R1 = error_R1 + fallen_value_R1 - self.contributions_RI.gather(1, grown_R1)
        helps_R1 = error_R1.abs() > self.pruner.update_threshold
        if self.pruner.same_sign or (self.group_width and self.pruner.reference_swaps):
            helps_R1 &= after_R1.sign() == self.first_sign_R1
        if self.pruner.reference_swaps:
            self.goes_on_R1 &= helps_R1
            swaps_R1 = self.goes_on_R1
            # Rows that have stopped are written too: their pointers may have reached weights that never were candidates.
            self.removed_RI.scatter_(1, fallen_R1, swaps_R1).scatter_(1, grown_R1, ~swaps_R1)
        else:
            grows_R1 = self.growable_RI.gather(1, grown_R1) * error_R1 > 0
            falls_R1 = self.metric_RI.gather(1, fallen_R1) < torch.inf
            if not self.group_width:
                falls_R1 &= fallen_value_R1 * error_R1 < 0
            # Where a group has none left to fall, the row goes on with the next to grow.
            self.goes_on_R1 &= grows_R1 & (helps_R1 & (after_R1.abs() < error_R1.abs()) | ~falls_R1)
            swaps_R1 = self.goes_on_R1 & falls_R1
            self.removed_RI.scatter_(1, fallen_R1, self.removed_RI.gather(1, fallen_R1) | swaps_R1)
            self.removed_RI.scatter_(1, grown_R1, self.removed_RI.gather(1, grown_R1) & ~swaps_R1)
        self.metric_RI.scatter_(1, fallen_R1, torch.inf)
        self.error_R1 = torch.where(swaps_R1, after_R1, error_R1)

    def _lowest_of_group(self, grown_R1: Tensor) -> Tensor:
        """The weight [R, 1] of lowest metric in the N:M group of each grown one."""
        first_R1 = grown_R1 - grown_R1 % self.group_width
        group_RM = first_R1 + torch.arange(self.group_width, device=grown_R1.device)
        metric_RM = self.metric_RI.gather(1, group_RM)
        if self.pruner.reference_swaps:
            # The reference also swaps where none is left to fall; which weight it takes then is up to topk.
            return first_R1 + metric_RM.topk(1, dim=1, largest=False).indices
        return first_R1 + metric_RM.argmin(dim=1, keepdim=True)


class _TwoEnded:
    """Candidates in an order [R, I] that is taken from the left against errors of one sign, from the right against the other."""

    def __init__(self, order_RI: Tensor, n_candidates_R1: Tensor) -> None:
        self.order_RI = order_RI
        self.left_R1 = torch.zeros_like(n_candidates_R1)
        self.right_R1 = n_candidates_R1 - 1

    def take(self, from_right_R1: Tensor) -> Tensor:
        """The next candidate [R, 1] of every row; past the last one, the outermost again."""
        place_R1 = torch.where(from_right_R1, self.right_R1, self.left_R1).clamp(0, self.order_RI.shape[1] - 1)
        self.left_R1 = self.left_R1 + ~from_right_R1
        self.right_R1 = self.right_R1 - from_right_R1.long()
        return self.order_RI.gather(1, place_R1)


def _growing(values_RI: Tensor) -> _TwoEnded:
    """To grow: the most negative first from the left, the most positive from the right."""
    n_R1 = torch.full((len(values_RI), 1), values_RI.shape[1], device=values_RI.device)
    return _TwoEnded(values_RI.argsort(dim=1, stable=True), n_R1)


def _falling(metric_RI: Tensor, contributions_RI: Tensor) -> _TwoEnded:
    """To fall: from the left those of negative contribution, from the right those of positive, each with the lowest metric first.

    Places between them, one for every contribution of zero, show the weight of lowest metric.
    """
    order_RI = metric_RI.argsort(dim=1, stable=True)
    stands_RI = metric_RI.gather(1, order_RI) < torch.inf
    n_R1 = stands_RI.sum(dim=1, keepdim=True)
    values_RI = contributions_RI.gather(1, order_RI)
    negative_RI, positive_RI = stands_RI & (values_RI < 0), stands_RI & (values_RI > 0)
    beyond = metric_RI.shape[1]
    place_RI = torch.where(positive_RI, n_R1 - positive_RI.cumsum(dim=1), beyond)
    place_RI = torch.where(negative_RI, negative_RI.cumsum(dim=1) - 1, place_RI)
    arranged_RI = order_RI[:, :1].repeat(1, beyond + 1).scatter_(1, place_RI, order_RI)
    return _TwoEnded(arranged_RI[:, :beyond], n_R1)
