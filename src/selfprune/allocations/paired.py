"""Differences of scores on the same windows, and how clear they are."""

import math
import statistics
from collections.abc import Sequence


def paired_difference(scores: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Mean difference of paired scores, positive when `scores` are higher, and its standard error; NaN where one pair shows none.

    Args:
        scores: one or more.
        others: of the same windows.
    """
    differences = [a - b for a, b in zip(scores, others, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return statistics.fmean(differences), error


def paired_z(scores: Sequence[float], others: Sequence[float]) -> float:
    """Mean difference of paired scores in standard errors; positive when `scores` are higher; 0 where one pair shows none."""
    mean, error = paired_difference(scores, others)
    if math.isnan(error):
        return 0.0
    if error == 0.0:
        return 0.0 if mean == 0.0 else math.copysign(math.inf, mean)
    return mean / error
