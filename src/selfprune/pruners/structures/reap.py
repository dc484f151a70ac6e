"""REAP: the experts go that add least to what their router asks of them (Lasby et al., 2025, arXiv 2510.13999).

Limits: experts alone, whose matrices are stacked. As many stay as a token is sent to. A gradient sees nothing of an expert that
is gone, since no token is sent to it: searches without gradients serve better.

Shape suffixes: O out, C experts, W columns of each.
"""

from dataclasses import dataclass, field

from torch import Tensor

from selfprune.allocations.unit import Item
from selfprune.pruners.structure_pruner import StructurePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.routed_outputs import RoutedOutputs


@dataclass
class REAP(StructurePruner):
    """S_j = the mean of g_j(x) · ‖f_j(x)‖ over the tokens x that are sent to expert j."""

    structures: list[Item] = field(default_factory=lambda: [Item.EXPERT])

    @property
    def knows_experts(self) -> bool:
        """And nothing else."""
        return True

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """What experts put out, by the weight of the router."""
        return RoutedOutputs(n_row_groups)

    def scores(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """S_j [C]; an expert that no token was sent to goes first."""
        assert isinstance(statistics, RoutedOutputs)
        return statistics.means_of_experts().to(weight_OCW.device)
