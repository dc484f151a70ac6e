"""Least squares: the weights that stay make up for those that go, on the inputs of the calibration.

W' minimises Σ_tokens ‖(W − W') x‖² + λ ‖W'_K − W_K‖² over the weights K that stay: of whole columns in one solve (the readers of
heads and channels), of single weights, which every row keeps others of, by conjugate gradients (as in ALPS, Meng et al., 2024,
arXiv 2406.07831, §3.3).

Limits: the Gram matrix of each input, 4·I² bytes. For single weights a few steps come near to the minimum, not quite there.

Shape suffixes: O out, I in, G groups of output rows with an input of their own.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.pruners.base import PrunedUnit
from selfprune.pruners.refit import fit_kept, fit_masked
from selfprune.pruners.updates import restore_vanished_in_place
from selfprune.recoveries.base import UnitRecovery
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_gram import InputGram


@dataclass
class LeastSquares(UnitRecovery):
    """The output of the unit on the calibration inputs as near to what it was as the kept weights allow.

    Attributes:
        percent_damping: λ, as a share of the mean square of the inputs.
        n_steps: of conjugate gradients, at most.
    """

    percent_damping: float = 0.01
    n_steps: int = 30

    def __post_init__(self) -> None:
        if not 0 <= self.percent_damping <= 1:
            raise ConfigError(f"recovery.percent_damping must lie in [0, 1], got {self.percent_damping}")
        if self.n_steps < 1:
            raise ConfigError(f"recovery.n_steps must be 1 or more, got {self.n_steps}")

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """The inner products of the inputs."""
        return InputGram(n_row_groups, n_in, n_sequences)

    def repaired(self, weight_OI: Tensor, kept: Tensor, pruned: PrunedUnit, statistics: Statistics) -> PrunedUnit:
        """The same items, and weights that are fitted; rows of experts that saw nothing stay as they were left."""
        assert isinstance(statistics, InputGram)
        left_OI = (weight_OI if pruned.weight_OI is None else pruned.weight_OI) * kept
        n_rows = len(weight_OI) // len(statistics.sums())
        for group, gram_II in enumerate(statistics.sums()):
            rows = slice(group * n_rows, (group + 1) * n_rows)
            if not gram_II.diagonal().any():
                continue
            if len(kept) == 1:
                fitted_OI = fit_kept(weight_OI[rows], gram_II, kept[0], self.percent_damping)
            else:
                fitted_OI = fit_masked(weight_OI[rows], gram_II, kept[rows], left_OI[rows], self.percent_damping, self.n_steps)
            left_OI[rows] = fitted_OI.to(weight_OI.dtype)
        if len(kept) > 1:
            restore_vanished_in_place(left_OI, kept, weight_OI)
        return replace(pruned, weight_OI=left_OI)
