"""FLAP: structures whose inputs hardly fluctuate go first (An et al., 2023, arXiv 2312.11983, eq. 5).

An input that is nearly constant can be made up for by a constant, so that its variance counts, and not its size.

Limits: the order within one attention or one FFN; the published search for one threshold over all of them is not part of it, nor
are the output biases.

Shape suffixes: O out, C items, W columns per item.
"""

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from selfprune.pruners.structure_pruner import StructurePruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_fluctuation import InputFluctuation


class Metric(str, Enum):
    """How a column of the reader is judged."""

    WIFV = "WIFV"
    """Weighted variance of the input."""
    IFV = "IFV"
    """Variance of the input."""
    WIFN = "WIFN"
    """Wanda's metric, averaged over the outputs."""


@dataclass
class FLAP(StructurePruner):
    """The fluctuation of x · ‖W‖² of the reader's columns; the squares of it, summed over its columns, for heads.

    Attributes:
        metric: WIFV, or IFV or WIFN of the same paper.
    """

    metric: Metric = Metric.WIFV

    def own_statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """Fluctuations and squares of the inputs."""
        return InputFluctuation(n_row_groups, n_in, n_sequences)

    def scores(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """The metric of each item [C]: of its column, or the sum of the squares over the columns of a head."""
        assert isinstance(statistics, InputFluctuation)
        both = statistics.means()[0], statistics.fluctuations_GI[0]
        squares_CW, fluctuations_CW = (values.to(weight_OCW.device).reshape(weight_OCW.shape[1:]) for values in both)
        weight_OCW = weight_OCW.float()
        if self.metric is Metric.WIFN:
            columns_CW = weight_OCW.abs().mean(dim=0) * squares_CW.sqrt()
        else:
            columns_CW = fluctuations_CW * (weight_OCW.square().sum(dim=0) if self.metric is Metric.WIFV else 1)
        return columns_CW[:, 0] if columns_CW.shape[1] == 1 else columns_CW.square().sum(dim=1)
