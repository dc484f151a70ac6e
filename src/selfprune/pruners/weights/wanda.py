"""Wanda: pruning by weights and activations (Sun et al., 2023, arXiv 2306.11695).

Limits: the kept weights are not updated, so beyond 60% or so methods that do (SparseGPT, ALPS) leave less error.
"""

from dataclasses import dataclass

from torch import Tensor

from selfprune.pruners.weight_pruner import ScorePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_squares import InputSquares


@dataclass
class Wanda(ScorePruner):
    """|W| · ‖x‖, compared within an output row by default."""

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """Squares of the inputs."""
        return InputSquares(n_row_groups, n_in, n_sequences)

    def scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """M = |W| · sqrt(s) [O, I] (eq. 1)."""
        assert isinstance(statistics, InputSquares)
        return wanda_metric(weight_OI, statistics.means())


def wanda_metric(weight_OI: Tensor, means_GI: Tensor) -> Tensor:
    """|W| · sqrt(s) in fp32 [O, I], each group of rows with the mean squares s of the inputs that it sees."""
    norms_GI = means_GI.sqrt().to(weight_OI.device)
    n_groups, n_in = norms_GI.shape
    magnitudes_OI = weight_OI.float().abs()
    return magnitudes_OI.reshape(n_groups, -1, n_in).mul_(norms_GI[:, None, :]).reshape(weight_OI.shape)
