"""Scores a model on token windows, window by window, so that candidates can be compared in pairs.

Shape suffixes: N windows, T tokens, V vocabulary, K kept targets.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfprune.evaluators.base import Evaluation
from selfprune.models.prefix_forward import PrefixForward

LOGIT_BYTES = 16
"""Memory for every logit of a batch besides the logits: the same in fp32, their exponentials, and both again for gradients."""


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
        """What must be remembered of the dense model's answer to one batch."""

    @abstractmethod
    def window_scores(self, logits_NTV: Tensor, batch_NT: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Mean score per token of each window, in nats, lower is better [N]."""


@dataclass(frozen=True)
class _Batch:
    start: int
    batch_NT: Tensor
    targets: dict[str, tuple[Tensor, ...]]


class WindowEvaluator:
    """Metrics over one split, in an order of windows that never changes.

    Args:
        metrics: name -> what is measured; the first gives the score.
        model: the model, dense at construction; the dense answers that the metric needs are computed here, once.
        blocks: its decoder blocks.
        windows_NT: the split.
        batch_size: windows per forward pass.
        boundaries: window counts at which callers will stop; batches never cross one.
        prefix_bytes: bound on hidden states kept for prefix reuse; 0 turns it off.

    Attributes:
        tokens_per_second: of the dense passes at construction.
        dense_scores: the first metric's scores of the dense model, window by window.
        dense_nll_per_token: negative log-likelihood of the dense model over all windows, in nats.

    Example:
        >>> evaluator = WindowEvaluator({"kl": KLDivergence()}, model, blocks, windows_NT, batch_size=4, boundaries=[4, 16])
        >>> evaluator.evaluate(versions, batches=[0]).score
    """

    def __init__(
        self,
        metrics: dict[str, WindowMetric],
        model: nn.Module,
        blocks: Sequence[nn.Module],
        windows_NT: Tensor,
        batch_size: int,
        boundaries: Sequence[int] = (),
        prefix_bytes: int = 0,
    ) -> None:
        self.metrics = metrics
        self.forward = PrefixForward(model, blocks, prefix_bytes)
        self.n_windows, self.n_tokens_per_window = windows_NT.shape
        device = next(model.parameters()).device
        self._batches: list[_Batch] = []
        self.dense_scores: list[float] = []
        nll: list[float] = []
        began = time.perf_counter()
        for start, end in pairwise(accumulate(batch_sizes(self.n_windows, batch_size, boundaries), initial=0)):
            batch_NT = windows_NT[start:end].to(device)
            dense_NTV = self.forward(start, batch_NT, versions=["dense"] * len(blocks))
            targets = {name: _prepared(metric, dense_NTV, batch_NT) for name, metric in metrics.items()}
            self._batches.append(_Batch(start, batch_NT, targets))
            nll += _each_nll(dense_NTV, batch_NT)
            self.dense_scores += self._scores(next(iter(metrics)), dense_NTV, self._batches[-1]).tolist()
        self.tokens_per_second = windows_NT.numel() / (time.perf_counter() - began)
        self.dense_nll_per_token = math.fsum(nll) / len(nll)
        self.forward.clear()

    @property
    def batch_sizes(self) -> list[int]:
        """Windows of every batch, in order."""
        return [len(batch.batch_NT) for batch in self._batches]

    def evaluate(self, versions: Sequence[Hashable], batches: Sequence[int] | None = None) -> Evaluation:
        """Scores the model as it stands.

        Args:
            versions: one value per block, equal whenever the block's weights are (see `PrefixForward`).
            batches: which batches, by number; all when None.

        Returns:
            the mean of the first metric, and in `metrics` the scores of every window by metric.
        """
        began = time.perf_counter()
        scores: dict[str, list[float]] = {name: [] for name in self.metrics}
        for index in range(len(self._batches)) if batches is None else batches:
            batch = self._batches[index]
            logits_NTV = self.forward(batch.start, batch.batch_NT, versions)
            for name in self.metrics:
                scores[name] += self._scores(name, logits_NTV, batch).tolist()
        first = next(iter(scores.values()))
        seconds = time.perf_counter() - began
        return Evaluation(math.fsum(first) / len(first), scores, len(first) * self.n_tokens_per_window, seconds)

    def batch(self, index: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The tokens [N, T] of a batch, and the sum of its windows' scores as a function of logits, for gradients."""
        batch, first = self._batches[index], next(iter(self.metrics))
        return batch.batch_NT, lambda logits_NTV: self._scores(first, logits_NTV, batch).sum()

    def _scores(self, name: str, logits_NTV: Tensor, batch: _Batch) -> Tensor:
        """Scores of a batch's windows [N], one by one, since what a metric makes of the logits is several times their size."""
        each = _by_window(logits_NTV, batch.batch_NT, *batch.targets[name])
        return torch.cat([self.metrics[name].window_scores(logits, tokens, kept) for logits, tokens, *kept in each])


def batch_sizes(n_windows: int, at_most: int, boundaries: Sequence[int] = ()) -> list[int]:
    """Windows of every batch of a split, in order.

    Args:
        n_windows: of the split.
        at_most: windows per batch.
        boundaries: window counts that no batch crosses.
    """
    edges = sorted({0, *boundaries, n_windows})
    return [min(at_most, high - start) for low, high in pairwise(edges) for start in range(low, high, at_most)]


def _prepared(metric: WindowMetric, logits_NTV: Tensor, batch_NT: Tensor) -> tuple[Tensor, ...]:
    """What a metric keeps of a batch, taken window by window for the same reason."""
    kept = [metric.prepare(logits, tokens) for logits, tokens in _by_window(logits_NTV, batch_NT)]
    return tuple(torch.cat(of_windows) for of_windows in zip(*kept, strict=True))


def _by_window(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(whole, 1) for whole in tensors), strict=True)


def negative_log_likelihood(logits_NTV: Tensor, batch_NT: Tensor) -> Tensor:
    """Negative log-likelihood of every token but the first, in nats [N, T-1], computed in fp32."""
    return nn.functional.cross_entropy(logits_NTV[:, :-1].float().transpose(1, 2), batch_NT[:, 1:], reduction="none")


def _each_nll(logits_NTV: Tensor, batch_NT: Tensor) -> list[float]:
    """Mean negative log-likelihood of every window, taken window by window."""
    each = _by_window(logits_NTV, batch_NT)
    return [float(mean_per_window(negative_log_likelihood(logits, tokens))) for logits, tokens in each]


def mean_per_window(values_NT: Tensor) -> Tensor:
    """Mean over tokens in fp64 [N]."""
    return values_NT.double().mean(dim=1)
