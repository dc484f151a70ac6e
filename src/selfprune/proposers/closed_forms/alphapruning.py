"""AlphaPruning: sparsities from the tails of the blocks' spectra (Lu et al., 2024, arXiv 2410.10912).

The eigenvalues λ of WᵀW (the squared singular values) of a well trained matrix have a heavy tail, λ^−α above some x_min. The
Hill estimator over the n eigenvalues from x_min on is α = 1 + n / Σ ln(λ_i / x_min). A block's α is the mean over its matrices,
mapped linearly to η in [1 − ε, 1 + ε], and its sparsity is s_l = S·η_l / η̄, with η̄ the mean weighted by size: the lighter the
tail, the less trained the block, the more it is pruned.

Limits: looks at weights alone; the singular values of every matrix take minutes for a model of billions of weights on a CPU.

Shape suffixes: O out, I in, L eigenvalues in ascending order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.proposers.base import ClosedForm, Measurement, SearchSpace, WeightMeasurement, between_extremes

N_BINS = 100


class TailStart(str, Enum):
    """Where the tail starts, x_min.

    PEAK: the eigenvalue near the peak of the histogram of log10 λ from which on a power law fits best (Kolmogorov–Smirnov).
    MIDDLE: the middle eigenvalue.
    """

    PEAK = "PEAK"
    MIDDLE = "MIDDLE"


@dataclass(frozen=True)
class TailExponent(WeightMeasurement):
    """The mean α of a block's matrices; NaN where none has a tail."""

    tail_start: TailStart
    needs_inputs: ClassVar[bool] = False

    def of_block(self, weights: Sequence[Tensor], metrics: Sequence[Tensor]) -> float:
        """α of one block."""
        exponents = [tail_exponent(weight_OI, self.tail_start) for weight_OI in weights]
        return _mean_of_finite(exponents)


@dataclass
class AlphaPruning(ClosedForm):
    """Blocks whose spectra have heavy tails are pruned less.

    Unlike the reference, the sparsities are put exactly on the budget and inside [0, 1] afterwards.

    Attributes:
        tail_start: where the tail of a spectrum starts.
        max_deviation: ε; before they are scaled to the target, sparsities differ by at most 2ε of it.
    """

    tail_start: TailStart = TailStart.PEAK
    max_deviation: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.max_deviation < 1:
            raise ConfigError(f"AlphaPruning needs max_deviation in [0, 1), got {self.max_deviation}; the paper's is near 0.3")

    def measurements(self) -> list[Measurement]:
        """α."""
        return [TailExponent(TailStart(self.tail_start))]

    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """s_l = S·η_l / η̄, with η = 1 − ε + 2ε·(α − min α) / (max α − min α); can exceed 1, as in the reference.

        Raises:
            ConfigError: when the tail exponents were not measured.
        """
        exponents = self.measured(space)
        middle = _mean_of_finite(list(exponents.values()))
        known = {block: exponent if math.isfinite(exponent) else middle for block, exponent in exponents.items()}
        positions = between_extremes(known, if_equal=0.5)
        scales = {block: 1 - self.max_deviation + 2 * self.max_deviation * position for block, position in positions.items()}
        units = space.grid.units
        mean = sum(scales[unit.block] * unit.n_weights for unit in units) / space.grid.n_weights()
        return {unit.name: space.target_sparsity * scales[unit.block] / mean for unit in units}


def tail_exponent(weight_OI: Tensor, tail_start: TailStart) -> float:
    """α of one matrix; NaN where it has no tail, as with fewer than two eigenvalues above zero or all of them equal.

    Args:
        weight_OI: the weights.
        tail_start: where the tail starts.
    """
    eigenvalues_L = torch.linalg.svdvals(weight_OI.float()).cpu().double().square().flip(0)
    # The logarithm of an exact zero would spoil every sum; the reference gives NaN there.
    eigenvalues_L = eigenvalues_L[eigenvalues_L > 0]
    if len(eigenvalues_L) < 2 or eigenvalues_L[0] == eigenvalues_L[-1]:
        return math.nan
    if tail_start is TailStart.MIDDLE:
        return _hill(eigenvalues_L[len(eigenvalues_L) // 2 :])
    fits = [_fit(eigenvalues_L[start:]) for start in _starts_near_peak(eigenvalues_L)]
    return min((fit for fit in fits if math.isfinite(fit[1])), default=(math.nan, math.nan))[1]


def _starts_near_peak(eigenvalues_L: Tensor) -> list[int]:
    """Positions of the eigenvalues that may start the tail."""
    logs_L = eigenvalues_L.log10()
    low, high = float(logs_L[0]), float(logs_L[-1])
    counts = torch.histc(logs_L, N_BINS, low, high).tolist()
    peak = 10 ** (low + (high - low) * counts.index(max(counts)) / N_BINS)
    # The lower bound is a logarithm and is compared with eigenvalues all the same, as in the reference, so that published
    # allocations are met; for most spectra it bounds nothing.
    lowest, highest = math.log10(0.95 * peak), 1.5 * peak
    return [i for i, value in enumerate(eigenvalues_L[:-1].tolist()) if lowest <= value <= highest]


def _hill(tail_L: Tensor) -> float:
    """α = 1 + n / Σ ln(λ_i / x_min), x_min being the first; NaN where all are equal."""
    spread = float((tail_L / tail_L[0]).log().sum())
    return 1 + len(tail_L) / spread if spread > 0 else math.nan


def _fit(tail_L: Tensor) -> tuple[float, float]:
    """The largest distance between the tail's distribution and the power law that fits it, and the law's α."""
    exponent, n_tail = _hill(tail_L), len(tail_L)
    expected_L = 1 - (tail_L / tail_L[0]) ** (1 - exponent)
    return float((expected_L - torch.arange(n_tail) / n_tail).abs().max()), exponent


def _mean_of_finite(numbers: Sequence[float]) -> float:
    finite = [number for number in numbers if math.isfinite(number)]
    return sum(finite) / len(finite) if finite else math.nan
