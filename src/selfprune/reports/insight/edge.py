"""Where pruning becomes too much: measured points of damage over sparsity, and the edge between what is safe and what is not.

A sparsity is safe when the winner's report KL is at most a limit, and no task is worse than the dense model's by more than two
standard errors of the difference. Between the last safe point and the first that is not, the logarithm of the KL is taken as a
line; the edge is where it reaches the limit, or the middle where a task decides. Its interval comes from drawing report windows
anew (bootstrap), the same for both points; where a task decides, it is all that lies between the two.

Limits: two points say nothing of what lies between them but what a line does; one seed of the search.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfprune.reports.task_columns import primary_metric, standard_error

N_ERRORS = 2.0
"""Standard errors of the difference by which a task may be worse."""
N_DRAWS = 1000
FLOOR = 1e-6
"""Nats per token; logarithms of a KL are taken from here on."""


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        sparsity: that was asked for.
        window_kl: the winner's report KL, window by window.
        perplexity: the winner's.
        uniform_kl: that of uniform pruning; None where the run had no such row.
        worse_tasks: task -> by how many standard errors of the difference it is worse, those beyond what is safe alone.
    """

    sparsity: float
    window_kl: Sequence[float]
    perplexity: float
    uniform_kl: float | None
    worse_tasks: dict[str, float]

    @property
    def kl(self) -> float:
        """The mean over windows."""
        return math.fsum(self.window_kl) / len(self.window_kl)

    def is_safe(self, max_kl: float) -> bool:
        """Whether neither KL nor a task is beyond its limit; a KL that is not finite is."""
        return self.kl <= max_kl and not self.worse_tasks

    @classmethod
    def of(cls, sparsity: float, rows: Mapping[str, Mapping[str, Any]], window_kl: Sequence[float]) -> "Point":
        """From the rows of a report.

        Args:
            sparsity: that was asked for.
            rows: name -> row.
            window_kl: of the winner, window by window.
        """
        winner, dense = rows["winner"], rows["dense"]
        worse = {
            task: drop for task, metrics in winner["tasks"].items() if (drop := _drop(dense["tasks"][task], metrics)) > N_ERRORS
        }
        uniform = rows.get("uniform", {}).get("kl")
        return cls(sparsity, window_kl, winner["perplexity"], uniform, worse)


@dataclass(frozen=True)
class Edge:
    """The answer.

    Attributes:
        sparsity: the highest that is safe; None where the lowest point is not.
        low: of its interval.
        high: of it.
        is_open: whether the highest point is safe, so that the edge lies beyond it.
        reason: what is beyond its limit at the first point that is not safe, in words.
    """

    sparsity: float | None
    low: float
    high: float
    is_open: bool
    reason: str


def find_edge(points: Sequence[Point], max_kl: float) -> Edge:
    """The edge between the last safe point and the first that is not.

    Args:
        points: one or more, by rising sparsity.
        max_kl: the limit, in nats per token.
    """
    unsafe = next((i for i, point in enumerate(points) if not point.is_safe(max_kl)), None)
    if unsafe is None:
        return Edge(points[-1].sparsity, points[-1].sparsity, 1.0, True, "")
    above = points[unsafe]
    reason = _reason(above, max_kl)
    if unsafe == 0:
        return Edge(None, 0.0, above.sparsity, False, reason)
    below = points[unsafe - 1]
    if above.kl <= max_kl:
        return Edge((below.sparsity + above.sparsity) / 2, below.sparsity, above.sparsity, False, reason)
    generator = np.random.default_rng(0)
    windows = [np.asarray(point.window_kl, dtype=float) for point in (below, above)]
    n_windows = min(map(len, windows))
    drawn = generator.integers(0, n_windows, (N_DRAWS, n_windows))
    means = [each[:n_windows][drawn].mean(axis=1) for each in windows]
    crossings = [crossing(below.sparsity, a, above.sparsity, b, max_kl) for a, b in zip(*means, strict=True)]
    low, high = np.quantile(crossings, [0.025, 0.975])
    return Edge(crossing(below.sparsity, below.kl, above.sparsity, above.kl, max_kl), float(low), float(high), False, reason)


def crossing(low: float, kl_low: float, high: float, kl_high: float, max_kl: float) -> float:
    """The sparsity where a line through the logarithms of two KLs reaches the limit, within the two."""
    if not math.isfinite(kl_high):
        return low
    a, b, limit = (math.log(max(kl, FLOOR)) for kl in (kl_low, kl_high, max_kl))
    share = (limit - a) / (b - a) if b > a else 0.5
    return low + (high - low) * min(max(share, 0.0), 1.0)


def edge_sentence(edge: Edge, points: Sequence[Point], max_kl: float) -> str:
    """The answer in plain words."""
    limits = (
        f"a report KL of at most {max_kl:g} nats per token, and no task worse than the dense model's by more than {N_ERRORS:g} "
        "standard errors"
    )
    if edge.is_open:
        return f"All points up to {points[-1].sparsity:.1%} are safe ({limits}); give a higher --to."
    if edge.sparsity is None:
        return f"Already {points[0].sparsity:.1%} is too much: {edge.reason} ({limits} is safe); give a lower --from."
    return (
        f"Up to {edge.sparsity:.1%} is safe ({limits}; 95% interval {edge.low:.1%} to {edge.high:.1%}); beyond it, at "
        f"{next(point for point in points if not point.is_safe(max_kl)).sparsity:.1%}, {edge.reason}."
    )


def _reason(point: Point, max_kl: float) -> str:
    told = [f"the KL is {point.kl:.3g}"] if not point.kl <= max_kl else []
    told += [f"{task} is worse by {drop:.1f} standard errors" for task, drop in point.worse_tasks.items()]
    return " and ".join(told)


def _drop(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> float:
    """By how many standard errors of the difference a task's primary metric is worse; 0 where that is unknown."""
    primary = primary_metric(dense)
    errors = standard_error(dense), standard_error(pruned)
    if primary not in dense or primary not in pruned or None in errors:
        return 0.0
    error = math.hypot(*(each or 0.0 for each in errors))
    sign = -1 if dense.get("higher_is_better") is False else 1
    difference: float = sign * (dense[primary] - pruned[primary])
    return difference / error if error else 0.0
