"""Coupled Taylor: items whose removal changes the loss least go (LLM-Pruner, Ma et al., 2023, arXiv 2305.11627, eq. 3).

The change is that of first order. All matrices that lose something with an item are coupled; the change is the same for each of
them, since each multiplies what the item puts out, and is that of a gate on the item.

Limits: the gradients are those of the dense model, and of a trained one they are small and noisy: many calibration windows help.

Shape suffixes: O out, C items, W columns per item.
"""

from dataclasses import dataclass

from torch import Tensor

from selfprune.pruners.gate_pruner import GatePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.gate_gradients import GateGradients


@dataclass
class CoupledTaylor(GatePruner):
    """|∂L/∂g|, the gradient of the mean loss by a gate."""

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """The gradient, averaged over windows."""
        return GateGradients(n_row_groups, power=1)

    def scores(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """|Σ W · ∂L/∂W| over the item [C]."""
        assert isinstance(statistics, GateGradients)
        return statistics.mean()[0].abs().to(weight_OCW.device)
