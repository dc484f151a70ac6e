"""Optimal Brain Damage: the weights go whose removal changes the loss least to second order (LeCun et al., 1989, NeurIPS 2).

The second derivatives are taken to be the diagonal of the empirical Fisher information: squared gradients of single windows.

Limits: off-diagonal terms are ignored, so that weights that make up for each other are valued one by one. A value for every
weight is held at once, four bytes each. Rows differ in the scale of their gradients, so that over a whole matrix (`scope=MATRIX`)
whole rows go, which measured far worse. Weights are not updated.
"""

from dataclasses import dataclass

from torch import Tensor

from selfprune.pruners.weight_pruner import ScorePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.weight_gradients import WeightGradients


@dataclass
class OBD(ScorePruner):
    """½ · F · w² with the diagonal Fisher information F, compared within an output row by default."""

    @property
    def needs_gradients(self) -> bool:
        """In place of inputs."""
        return True

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """The squared gradient, averaged over windows."""
        return WeightGradients(n_row_groups, power=2)

    def scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """½ · F · w² [O, I] (eq. 5)."""
        assert isinstance(statistics, WeightGradients)
        return 0.5 * statistics.mean() * weight_OI.float().square()
