"""Magnitude pruning: the smallest weights go (Han et al., 2015, arXiv 1506.02626).

Limits: it ignores the inputs, and so suffers from outlier channels far earlier than Wanda does.
"""

from dataclasses import dataclass

from torch import Tensor

from selfprune.pruners.weight_pruner import Scope, ScorePruner
from selfprune.statistics.base import NoStatistics, Statistics


@dataclass
class Magnitude(ScorePruner):
    """|W|, compared over the whole matrix by default."""

    scope: Scope = Scope.MATRIX

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """Nothing is gathered."""
        return NoStatistics()

    def scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """|W| [O, I]."""
        return weight_OI.float().abs()
