"""Taylor pruning: the weights go whose removal changes the loss least to first order (Molchanov et al., 2019, arXiv 1906.10771).

Limits: the gradients are those of the dense model, and of a trained one they are small and noisy; many calibration windows
help. A gradient of every weight is held at once, four bytes each. Rows differ in the scale of their gradients, so that
over a whole matrix (`scope=MATRIX`) whole rows go, which measured far worse. Weights are not updated.
"""

from dataclasses import dataclass

from torch import Tensor

from selfprune.pruners.weight_pruner import ScorePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.weight_gradients import WeightGradients


@dataclass
class Taylor(ScorePruner):
    """|g · w| with the gradient g of the mean loss, compared within an output row by default."""

    @property
    def needs_gradients(self) -> bool:
        """In place of inputs."""
        return True

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """The gradient, averaged over windows."""
        return WeightGradients(n_row_groups, power=1)

    def scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """|g · w| [O, I] (eq. 8, unsquared: the order is the same)."""
        assert isinstance(statistics, WeightGradients)
        return (statistics.mean() * weight_OI.float()).abs_()
