"""Bias compensation: what goes is made up for by its mean output (FLAP, An et al., 2023, arXiv 2312.11983, eq. 4).

Limits: every pruned matrix gets a bias, which configurations of most families do not know; such a checkpoint brings the file that
builds it along. A search compares masks without the biases. Fused experts, which have no biases, are refused.

Shape suffixes: O out, I in.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from selfprune.errors import PruningError
from selfprune.pruners.base import PrunedUnit
from selfprune.recoveries.base import UnitRecovery
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_moments import InputMoments


@dataclass
class BiasCompensation(UnitRecovery):
    """b = (W − W') · mean(x), so that the mean output stays what it was."""

    adds_biases = True

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """The means of the inputs."""
        return InputMoments(n_row_groups, n_in, n_sequences)

    def repaired(self, weight_OI: Tensor, kept: Tensor, pruned: PrunedUnit, statistics: Statistics) -> PrunedUnit:
        """The same weights, and the bias."""
        assert isinstance(statistics, InputMoments)
        if len(statistics.n_tokens_G) > 1:
            raise PruningError("fused experts have no biases; choose recovery=least_squares, or none")
        mean_I = (statistics.totals_GI[0] / statistics.n_tokens_G[0].clamp(min=1)).to(weight_OI.device)
        if not mean_I.isfinite().all():
            raise PruningError(
                "the mean inputs of a unit are not finite; load the model in a wider dtype (model.dtype=FLOAT32) or check its "
                "checkpoint"
            )
        left_OI = (weight_OI if pruned.weight_OI is None else pruned.weight_OI).float() * kept
        return replace(pruned, bias_O=(weight_OI.float() - left_OI) @ mean_I)
