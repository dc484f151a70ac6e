"""What a metric on windows of tokens must offer, and what all of them share.

Shape suffixes: N windows, T tokens, M tokens of all windows, V vocabulary, K kept targets.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

N_LOGITS_IN_CACHE, N_LOGITS_AT_ONCE = 2**20, 2**24
"""Logits that are worked on in fp32 at once: on a CPU as many as its caches hold, four times as fast with 49,152 tokens."""
MIN_TOKENS_AT_ONCE = 16
"""Fewer would let torch share a sum over the vocabulary out among threads, whose last bits depend on how many there are."""


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


def few_at_once(logits_MV: Tensor) -> Sequence[Tensor]:
    """Views of some tokens' logits, in order, whose copies in fp32 take bounded memory."""
    n_logits = N_LOGITS_IN_CACHE if logits_MV.device.type == "cpu" else N_LOGITS_AT_ONCE
    return torch.split(logits_MV, max(MIN_TOKENS_AT_ONCE, n_logits // logits_MV.shape[-1]))


def negative_log_likelihood(logits_NTV: Tensor, batch_NT: Tensor) -> Tensor:
    """Negative log-likelihood of every token but the first, in nats [N, T-1], computed in fp32."""
    logits_MV, next_M = logits_NTV[:, :-1].flatten(0, 1), batch_NT[:, 1:].flatten().to(logits_NTV.device)
    parts = few_at_once(logits_MV)
    targets = torch.split(next_M, len(parts[0]))
    nll = [nn.functional.cross_entropy(part.float(), each, reduction="none") for part, each in zip(parts, targets, strict=True)]
    return torch.cat(nll).view(len(batch_NT), -1)


def mean_per_window(values_NT: Tensor) -> Tensor:
    """Mean over tokens in fp64 [N]."""
    return values_NT.double().mean(dim=1)
