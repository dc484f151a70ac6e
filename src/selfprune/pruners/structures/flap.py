"""FLAP: structures whose inputs hardly fluctuate go first (An et al., 2023, arXiv 2312.11983, eq. 5).

An input that is nearly constant can be made up for by a constant, so that its variance counts, and not its size.

Limits: the order within one attention or one FFN. The published threshold over all of them is proposer=flap_global, and the
output biases are recovery=bias_compensation.

Shape suffixes: O out, C items, W columns per item.
"""

from dataclasses import dataclass

from torch import Tensor

from selfprune.pruners.structure_pruner import StructurePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_fluctuation import InputFluctuation, Metric


@dataclass
class FLAP(StructurePruner):
    """The fluctuation of x · ‖W‖² of the reader's columns; the squares of it, summed over its columns, for heads.

    Attributes:
        metric: WIFV, or IFV or WIFN of the same paper.
    """

    metric: Metric = Metric.WIFV

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """Fluctuations and squares of the inputs."""
        return InputFluctuation(n_row_groups, n_in, n_sequences)

    def scores(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """The metric of each item [C]: of its column, or the sum of the squares over the columns of a head."""
        return self.of_columns(weight_OCW, statistics).sum(dim=1)

    def of_columns(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """The metric of each column [C, W], squared where an item has several."""
        assert isinstance(statistics, InputFluctuation)
        both = statistics.means()[0], statistics.fluctuations_GI[0]
        squares_CW, fluctuations_CW = (values.to(weight_OCW.device).reshape(weight_OCW.shape[1:]) for values in both)
        weight_OCW = weight_OCW.float()
        if self.metric is Metric.WIFN:
            columns_CW = weight_OCW.abs().mean(dim=0) * squares_CW.sqrt()
        else:
            columns_CW = fluctuations_CW * (weight_OCW.square().sum(dim=0) if self.metric is Metric.WIFV else 1)
        return columns_CW if columns_CW.shape[1] == 1 else columns_CW.square()
