"""Where the curve of damage over sparsity turns steep: two straight lines that meet, fitted to the KLs that were measured.

    KL(s) = a + b·s + c·max(s − knee, 0)

by least squares, the knee on a fine grid (two-phase regression: Hinkley, 1969, Biometrika 56). The interval comes from drawing
report windows anew (bootstrap), the same for all points.

Limits: five points at least, since the lines have four numbers. The interval knows of windows, and not of what lies between the
points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfprune.reports.insight.edge import N_DRAWS, Point

N_POINTS = 5
N_GRID = 121


@dataclass(frozen=True)
class Knee:
    """Where the lines meet.

    Attributes:
        sparsity: where.
        low: of its 95% interval.
        high: of it.
    """

    sparsity: float
    low: float
    high: float


def find_knee(points: Sequence[Point]) -> Knee | None:
    """The knee of measured points; None where there are too few, or the curve does not turn upwards.

    Args:
        points: by rising sparsity.
    """
    if len(points) < N_POINTS:
        return None
    sparsities = np.array([point.sparsity for point in points])
    n_windows = min(len(point.window_kl) for point in points)
    kl_PN = np.array([list(point.window_kl)[:n_windows] for point in points])
    if not np.isfinite(kl_PN).all():
        return None
    drawn = np.random.default_rng(0).integers(0, n_windows, (N_DRAWS, n_windows))
    means_PD = np.column_stack([kl_PN.mean(axis=1), kl_PN[:, drawn].mean(axis=2)])
    knees = _knees(sparsities, means_PD)
    if not np.isfinite(knees[0]):
        return None
    low, high = np.nanquantile(knees[1:], [0.025, 0.975])
    return Knee(float(knees[0]), float(low), float(high))


def knee_sentence(knee: Knee) -> str:
    """The knee in plain words."""
    return f"The curve of the KL turns steep at {knee.sparsity:.1%} (95% interval {knee.low:.1%} to {knee.high:.1%})."


def _knees(sparsities: NDArray[np.float64], kl_PD: NDArray[np.float64]) -> NDArray[np.float64]:
    """The knee of every column; not a number where it does not turn upwards."""
    inner = np.linspace(sparsities[0], sparsities[-1], N_GRID + 2)[1:-1]
    errors, turns = [], []
    for knee in inner:
        design = np.column_stack([np.ones_like(sparsities), sparsities, np.maximum(sparsities - knee, 0)])
        fitted, *_ = np.linalg.lstsq(design, kl_PD, rcond=None)
        errors.append(((design @ fitted - kl_PD) ** 2).sum(axis=0))
        turns.append(fitted[2])
    best = np.argmin(np.where(np.array(turns) > 0, errors, np.inf), axis=0)
    turn = np.array(turns)[best, np.arange(kl_PD.shape[1])]
    return np.where(turn > 0, inner[best], np.nan)
