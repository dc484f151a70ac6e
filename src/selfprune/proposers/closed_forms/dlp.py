"""DLP: dynamic layerwise pruning from the medians of the blocks (Chen et al., 2025, arXiv 2505.23807).

U_l, the median of a block's Wanda metrics, tells how unimportant the block is: much lies in all of its weights and little in a
few. Its relative importance is R_l = 1 − U_l / ΣU, scaled to d = (R − min R) / (max R − min R) · 2α, and its sparsity is
s_l = S − d_l + mean(d).

Limits: one number per block, as with OWL, of which it differs by the median in the place of the outliers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.proposers.base import ClosedForm, Measurement, SearchSpace, WeightMeasurement, between_extremes


@dataclass(frozen=True)
class MedianMetric(WeightMeasurement):
    """U, the median of a block's Wanda metrics; of two in the middle, the lower one."""

    def of_block(self, weights: Sequence[Tensor], metrics: Sequence[Tensor]) -> float:
        """U of one block."""
        return float(torch.cat([metric.flatten() for metric in metrics]).median())


@dataclass
class DLP(ClosedForm):
    """Blocks with a low median among their Wanda metrics are pruned less.

    Unlike the reference, the sparsities are put exactly on the budget and inside [0, 1] afterwards.

    Attributes:
        max_deviation: α; sparsities differ by at most 2α.
    """

    max_deviation: float = 0.15

    def __post_init__(self) -> None:
        if not 0 <= self.max_deviation <= 0.5:
            raise ConfigError(
                f"DLP needs max_deviation in [0, 0.5], got {self.max_deviation}; 0.15 is the authors' choice at 70% sparsity"
            )

    def measurements(self) -> list[Measurement]:
        """U."""
        return [MedianMetric()]

    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """s_l = S − d_l + mean(d).

        Raises:
            ConfigError: when the medians were not measured.
        """
        # ΣU cancels when R is scaled: the importances rank the blocks as −U does.
        importances = {block: -median for block, median in self.measured(space).items()}
        deviation = {block: position * 2 * self.max_deviation for block, position in between_extremes(importances).items()}
        mean = sum(deviation.values()) / len(deviation)
        return {unit.name: space.target_sparsity - deviation[unit.block] + mean for unit in space.grid.units}
