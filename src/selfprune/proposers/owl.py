"""OWL: outlier-weighed layer-wise sparsity (Yin et al., 2023, arXiv 2310.05175).

Limits: one number per block, so attention and FFN of a block always share a sparsity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.proposers.base import ClosedForm, SearchSpace


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

    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """s_l = S − d_l + mean(d), with d = (D − min D) / (max D − min D) · 2λ (§3.3).

        Raises:
            ConfigError: when the outlier ratios were not measured.
        """
        ratios = space.outlier_ratios
        if not ratios:
            raise ConfigError(
                "OWL needs the outlier ratios of the blocks, got none, since they are measured only for a yardstick; "
                "add proposer@yardsticks.owl=owl"
            )
        low, high = min(ratios.values()), max(ratios.values())
        deviation = {
            block: (ratio - low) / (high - low) * 2 * self.max_deviation if high > low else 0.0 for block, ratio in ratios.items()
        }
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
