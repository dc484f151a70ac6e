"""Wanda-sp: Wanda's metric summed over a structure (the baseline of FLAP, An et al., 2023, arXiv 2312.11983, §4.1).

Limits: an item is judged by what reads it alone.

Shape suffixes: O out, C items, W columns per item.
"""

from dataclasses import dataclass

from torch import Tensor

from selfprune.pruners.structure_pruner import StructurePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_squares import InputSquares


@dataclass
class WandaSP(StructurePruner):
    """Σ |W| · ‖x‖ over the outputs and over the columns of an item."""

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """Squares of the inputs."""
        return InputSquares(n_row_groups, n_in, n_sequences)

    def scores(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """Σ_OW |W| · sqrt(s) [C], with the mean squares s of the inputs as in Wanda (arXiv 2306.11695, eq. 1)."""
        assert isinstance(statistics, InputSquares)
        norms_CW = statistics.means()[0].sqrt().to(weight_OCW.device).reshape(weight_OCW.shape[1:])
        return (weight_OCW.float().abs().sum(dim=0) * norms_CW).sum(dim=1)
