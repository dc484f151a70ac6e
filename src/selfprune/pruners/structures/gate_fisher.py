"""Fisher of gates: items whose gate has the least empirical Fisher information go (Theis et al., 2018, arXiv 1801.05787).

The second-order change of the loss when an item goes is half the Hessian by its gate, which near an optimum is the expectation of
the squared gradient.

Limits: as for every diagonal, items are judged as if each went alone; one window is one sample of the expectation.

Shape suffixes: O out, C items, W columns per item.
"""

from dataclasses import dataclass

from torch import Tensor

from selfprune.pruners.gate_pruner import GatePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.gate_gradients import GateGradients


@dataclass
class GateFisher(GatePruner):
    """½ · mean (∂L/∂g)² over the calibration windows."""

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """The squares of the gradients, averaged over windows."""
        return GateGradients(n_row_groups, power=2)

    def scores(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """Δ = ½ · F of each item [C]."""
        assert isinstance(statistics, GateGradients)
        return 0.5 * statistics.mean()[0].to(weight_OCW.device)
