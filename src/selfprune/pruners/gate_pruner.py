"""What pruners share that judge heads and channels by the gradient of a gate on each.

Shape suffixes: O out, C items, W columns per item.
"""

from dataclasses import dataclass

from torch import Tensor

from selfprune.pruners.structure_pruner import StructurePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.gate_gradients import GateGradients


@dataclass
class GatePruner(StructurePruner):
    """A pruner whose statistics are gradients of gates."""

    @property
    def needs_gradients(self) -> bool:
        """In place of inputs."""
        return True

    def see_gradient(self, statistics: Statistics, weight: Tensor, gradient_OI: Tensor) -> None:
        """Adds the gradient of one window [O, I] as those of the gates."""
        assert isinstance(statistics, GateGradients)
        statistics.see(weight, gradient_OI)
