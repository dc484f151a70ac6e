"""OWL: outlier-weighed layer-wise sparsity (Yin et al., 2023, arXiv 2310.05175).

Limits: one number per block, so attention and FFN of a block always share a sparsity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.proposers.base import ClosedForm, Measurement, SearchSpace, WeightMeasurement, between_extremes


@dataclass(frozen=True)
class OutlierRatio(WeightMeasurement):
    """D, the share of a block's Wanda metrics that are outliers (eq. 2), as a fraction.

    Attributes:
        threshold: M; a metric above M times the block's mean is an outlier.
    """

    threshold: float

    def of_block(self, weights: Sequence[Tensor], metrics: Sequence[Tensor]) -> float:
        """D of one block."""
        return outlier_ratio(metrics, self.threshold)


@dataclass
class OWL(ClosedForm):
    """Blocks with more outliers among their Wanda metrics are pruned less.

    Unlike the reference, the sparsities are put exactly on the budget and inside [0, 1] afterwards.

    Attributes:
        outlier_threshold: M; a metric above M times the block's mean is an outlier.
        max_deviation: λ; sparsities differ by at most 2λ.
    """

    outlier_threshold: float = 5.0
    max_deviation: float = 0.08

    def __post_init__(self) -> None:
        if self.outlier_threshold <= 0 or not 0 <= self.max_deviation <= 0.5:
            raise ConfigError(
                "OWL needs outlier_threshold > 0 and max_deviation in [0, 0.5], "
                f"got {self.outlier_threshold} and {self.max_deviation}; the paper uses 5 and 0.08"
            )

    def measurements(self) -> list[Measurement]:
        """D at this M."""
        return [OutlierRatio(self.outlier_threshold)]

    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """s_l = S − d_l + mean(d), with d = (D − min D) / (max D − min D) · 2λ (§3.3).

        Raises:
            ConfigError: when the outlier ratios were not measured.
        """
        ratios = self.measured(space)
        deviation = {block: position * 2 * self.max_deviation for block, position in between_extremes(ratios).items()}
        mean = sum(deviation.values()) / len(deviation)
        return {unit.name: space.target_sparsity - deviation[unit.block] + mean for unit in space.grid.units}


def outlier_ratio(metrics: Sequence[Tensor], outlier_threshold: float) -> float:
    """D of one block: the share of its Wanda metrics above M times their mean (eq. 2).

    Args:
        metrics: |W|·sqrt(s) of every unit of the block.
        outlier_threshold: M.
    """
    flat = torch.cat([metric.flatten() for metric in metrics])
    return float((flat > outlier_threshold * flat.mean()).double().mean())
