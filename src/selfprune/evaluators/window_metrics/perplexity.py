"""Perplexity: the exponential of the mean negative log-likelihood per token.

Limits: it rewards confidence in frequent tokens and says nothing about what the dense model knew; search on KL instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from selfprune.evaluators.window_metrics.base import WindowMetric, mean_per_window, negative_log_likelihood


@dataclass
class Perplexity(WindowMetric):
    """Mean negative log-likelihood per token of a window; perplexity is its exponential over all windows."""

    title: ClassVar[str] = "negative log-likelihood (nats per token)"

    def prepare(self, logits_NTV: Tensor, batch_NT: Tensor) -> tuple[Tensor, ...]:
        """Nothing of the dense model is needed."""
        return ()

    def window_scores(self, logits_NTV: Tensor, batch_NT: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Nats per token of each window [N]."""
        return mean_per_window(negative_log_likelihood(logits_NTV, batch_NT))
