"""RIA: relative importance and activations (Zhang et al., 2024, "Plug-and-Play", ICLR).

Limits: the kept weights are not updated. `permute_channels` chooses which input channels form the groups of an N:M pattern, while
the weights stay where they are: hardware with N:M kernels can use such a mask only after the same permutation has been applied
to the layer's input channels, and to the outputs of the layers that feed it.

Shape suffixes: O out, I in, G groups of rows with inputs of their own, K groups of a pattern, M channels of such a group.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import scipy  # its parts are imported when they are used
import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.pruners.base import PrunedUnit
from selfprune.pruners.selection import parse_pattern
from selfprune.pruners.updates import equal_shares
from selfprune.pruners.weight_pruner import Scope, ScorePruner, check_count
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_squares import InputSquares


@dataclass
class RIA(ScorePruner):
    """|W| relative to its column and its row, times the input's norm to a power; compared over the whole matrix by default.

    Every group of rows with inputs of its own (an expert) is a matrix of its own, with sums, channel order and an equal count.

    Attributes:
        activation_power: how much the norm of the inputs counts; 0 for not at all.
        permute_channels: under a pattern, form its groups of the input channels that together keep the most importance.
    """

    scope: Scope = Scope.MATRIX
    activation_power: float = 0.5
    permute_channels: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.activation_power < float("inf"):
            raise ConfigError(f"pruner.activation_power must be a finite number from 0 on, got {self.activation_power}")
        if self.permute_channels and not self.pattern:
            raise ConfigError(
                "pruner.permute_channels chooses the channels of a pattern's groups, but pruner.pattern is empty; "
                "set one (pruner.pattern=2:4) or leave the channels in their order"
            )

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """Squares of the inputs."""
        return InputSquares(n_row_groups, n_in, n_sequences)

    def scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """RIA = (|W| / Σ_column |W| + |W| / Σ_row |W|) · sqrt(s)^a [O, I]."""
        assert isinstance(statistics, InputSquares)
        norms_GI = statistics.means().sqrt().to(weight_OI.device)
        n_groups, n_in = norms_GI.shape
        weight_GOI = weight_OI.float().abs().reshape(n_groups, -1, n_in)
        relative_GOI = weight_GOI / _divisors(weight_GOI, dim=1) + weight_GOI / _divisors(weight_GOI, dim=2)
        return (relative_GOI * norms_GI[:, None, :].pow(self.activation_power)).reshape(weight_OI.shape)

    def ranks(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """The order in which the weights go, as in `WeightPruner.ranks`; the groups of rows take turns."""
        ranks = []
        for matrix_OI, own, places_I in self._matrices(weight_OI, statistics):
            ranks.append(super().ranks(matrix_OI, own)[:, places_I])
        dtype = torch.int32 if weight_OI.numel() < 2**31 else torch.int64
        return torch.stack([ranks_OI.to(dtype) * len(ranks) + g for g, ranks_OI in enumerate(ranks)]).reshape(weight_OI.shape)

    def prune_seen(self, weight_OI: Tensor, statistics: Statistics, n_pruned: int) -> PrunedUnit:
        """Removes the lowest of every group of rows, as many of each; the first ones lose what is left over."""
        check_count(weight_OI, n_pruned)
        matrices = list(self._matrices(weight_OI, statistics))
        masks = []
        for (matrix_OI, own, places_I), n_here in zip(matrices, equal_shares(n_pruned, len(matrices)), strict=True):
            masks.append(super().prune_seen(matrix_OI, own, n_here).kept[:, places_I])
        return PrunedUnit(torch.cat(masks))

    def _matrices(self, weight_OI: Tensor, statistics: Statistics) -> Iterator[tuple[Tensor, InputSquares, Tensor]]:
        """Every group of rows, with its inputs, its channels ordered for the pattern, and the places where they are found."""
        assert isinstance(statistics, InputSquares)
        n_groups, n_in = statistics.sums_GI.shape
        for g, matrix_OI in enumerate(weight_OI.reshape(n_groups, -1, n_in)):
            own = InputSquares(1, n_in, statistics.n_sequences)
            own.sums_GI = statistics.sums_GI[g : g + 1]
            order_I = torch.arange(n_in, device=weight_OI.device)
            if self.permute_channels and not own.unseen().any():
                scores_OI = self.scores(matrix_OI, own)
                self._comparison_rows(scores_OI)
                order_I = channel_order(scores_OI, *parse_pattern(self.pattern))
                matrix_OI, own.sums_GI = matrix_OI[:, order_I], own.sums_GI[:, order_I.to(own.sums_GI.device)]
            yield matrix_OI, own, order_I.argsort()


def channel_order(scores_OI: Tensor, n_kept: int, width: int) -> Tensor:
    """An order of the channels [I] whose consecutive groups keep more of the scores than those of the given order do.

    Channels are dealt over the groups by their total score; then, place by place, one channel of every group is given up
    and all are assigned anew such that the most importance is kept. If dealing keeps no more than the given order does, the
    assignment starts from the latter.

    Args:
        scores_OI: importance of the weights, finite and not negative.
        n_kept: N of `N:M`.
        width: M, which divides the number of channels.
    """

    def kept(order_I: Tensor) -> float:
        return float(scores_OI[:, order_I].reshape(-1, width).topk(n_kept, dim=1).values.double().sum())

    given_I = torch.arange(scores_OI.shape[1], device=scores_OI.device)
    best_I = max((given_I, _dealt(scores_OI, width)), key=kept)
    return max((best_I, _assigned(scores_OI, best_I, n_kept, width)), key=kept)


def _dealt(scores_OI: Tensor, width: int) -> Tensor:
    """The channels by falling total, dealt to and fro over the groups."""
    order_MK = scores_OI.double().sum(dim=0).argsort(descending=True, stable=True).reshape(width, -1)
    order_MK[1::2] = order_MK[1::2].flip(1)
    return order_MK.T.flatten()


def _assigned(scores_OI: Tensor, order_I: Tensor, n_kept: int, width: int) -> Tensor:
    """The order after one assignment at each place of the groups."""
    order_KM = order_I.reshape(-1, width).clone()
    for place in range(width):
        others_KM = torch.cat((order_KM[:, :place], order_KM[:, place + 1 :]), dim=1)
        # In a row where a newcomer scores c and the N-th of the others t, the group gains max(c - t, 0), which is
        # (|c - t| + c - t) / 2. Every group gets one newcomer, so that only the |c - t| depend on who goes where.
        nth_OK = scores_OI[:, others_KM].topk(n_kept, dim=2).values[..., -1]
        distances_KK = torch.cdist(nth_OK.T.contiguous(), scores_OI[:, order_KM[:, place]].T.contiguous(), p=1)
        _, newcomers = scipy.optimize.linear_sum_assignment(distances_KK.cpu().numpy(), maximize=True)
        order_KM[:, place] = order_KM[torch.from_numpy(newcomers).to(order_KM.device), place]
    return order_KM.flatten()


def _divisors(weight_GOI: Tensor, dim: int) -> Tensor:
    """Sums along a dimension, 1 where all is zero."""
    sums_GOI = weight_GOI.sum(dim=dim, keepdim=True)
    return sums_GOI.masked_fill(sums_GOI == 0, 1)
