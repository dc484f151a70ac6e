"""What a metric on windows of tokens must offer, and what all of them share.

Shape suffixes: N windows, T tokens, V vocabulary, K kept targets.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn


class WindowMetric(ABC):
    """A number per window from the logits of a model; a method is one subclass, which is its own config.

    Attributes:
        title: what is measured, with its unit, for pictures.
    """

    title: ClassVar[str] = "score (nats per token)"

    def kept_bytes(self, vocab_size: int) -> int:
        """Memory that `prepare` takes for every token."""
        return 0

    @abstractmethod
    def prepare(self, logits_NTV: Tensor, batch_NT: Tensor) -> tuple[Tensor, ...]:
        """What must be remembered of the dense model's answer to some windows."""

    @abstractmethod
    def window_scores(self, logits_NTV: Tensor, batch_NT: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Mean score per token of each window, in nats, lower is better [N]."""


def negative_log_likelihood(logits_NTV: Tensor, batch_NT: Tensor) -> Tensor:
    """Negative log-likelihood of every token but the first, in nats [N, T-1], computed in fp32."""
    return nn.functional.cross_entropy(logits_NTV[:, :-1].float().transpose(1, 2), batch_NT[:, 1:], reduction="none")


def mean_per_window(values_NT: Tensor) -> Tensor:
    """Mean over tokens in fp64 [N]."""
    return values_NT.double().mean(dim=1)
