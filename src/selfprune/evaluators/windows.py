"""Scores a model on token windows, window by window, so that candidates can be compared in pairs.

Callers name windows by their number in the split. How many of them share a forward pass is the evaluator's own business.

Shape suffixes: N windows, T tokens, V vocabulary, K kept targets.
"""

import copy
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import Tensor, nn

from selfprune.evaluators.window_metrics.base import WindowMetric, mean_per_window, negative_log_likelihood
from selfprune.models.blocks.calls import logits_of_few
from selfprune.models.blocks.prefix_forward import PrefixForward

LOGIT_BYTES = 16
"""Memory at most for every logit besides it: the same in fp32, its exponential, and both again for gradients."""


class WindowEvaluator:
    """Metrics over one split, whose windows keep their numbers.

    Args:
        metrics: name -> what is measured; the first gives the score.
        model: the model, dense at construction; the dense answers that the metric needs are computed here, once.
        blocks: its decoder blocks.
        windows_NT: the split.
        batch_size: windows that share a forward pass at most; on CPU no score depends on it.
        prefix_bytes: bound on hidden states kept for prefix reuse; 0 turns it off.

    Attributes:
        tokens_per_second: of the dense passes at construction.
        dense_scores: the first metric's scores of the dense model, window by window.
        dense_nll_per_token: negative log-likelihood of the dense model over all windows, in nats.

    Example:
        >>> evaluator = WindowEvaluator({"kl": KLDivergence()}, model, blocks, windows_NT, batch_size=4)
        >>> evaluator.evaluate(versions, windows=[0, 1, 2])["kl"]
    """

    def __init__(
        self,
        metrics: dict[str, WindowMetric],
        model: nn.Module,
        blocks: Sequence[nn.Module],
        windows_NT: Tensor,
        batch_size: int,
        prefix_bytes: int = 0,
    ) -> None:
        self.metrics, self.batch_size = metrics, batch_size
        self.forward = PrefixForward(model, blocks, 0)  # nothing is asked twice yet
        self.n_windows, self.n_tokens_per_window = windows_NT.shape
        self._windows_NT = windows_NT.to(next(model.parameters()).device)
        self._targets: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in metrics}
        self.dense_scores: list[float] = []
        nll: list[float] = []
        began = time.perf_counter()
        for window, logits_1TV in self._each_logits(["dense"] * len(blocks), range(self.n_windows)):
            tokens_1T = self._tokens(window)
            for name, metric in metrics.items():
                self._targets[name].append(metric.prepare(logits_1TV, tokens_1T))
            nll.append(float(mean_per_window(negative_log_likelihood(logits_1TV, tokens_1T))))
            self.dense_scores.append(float(self._score(next(iter(metrics)), logits_1TV, window)))
        self.tokens_per_second = windows_NT.numel() / (time.perf_counter() - began)
        self.dense_nll_per_token = math.fsum(nll) / len(nll)
        self.forward = PrefixForward(model, blocks, prefix_bytes)

    def on(self, model: nn.Module, blocks: Sequence[nn.Module]) -> "WindowEvaluator":
        """The same windows and dense answers for another model, such as the pruned one cut to its size.

        Args:
            model: on the same device.
            blocks: its decoder blocks.
        """
        other = copy.copy(self)
        other.forward = PrefixForward(model, blocks, 0)
        return other

    def evaluate(self, versions: Sequence[Hashable], windows: Sequence[int] | None = None) -> dict[str, list[float]]:
        """The scores of the model as it stands: metric -> those of these windows, in their order; not finite where it is broken.

        Args:
            versions: one value per block, equal whenever the block's weights are (see `PrefixForward`).
            windows: which windows, by number; all when None.
        """
        scores: dict[str, list[float]] = {name: [] for name in self.metrics}
        for window, logits_1TV in self._each_logits(versions, range(self.n_windows) if windows is None else windows):
            for name in self.metrics:
                scores[name].append(float(self._score(name, logits_1TV, window)))
        return scores

    def loss(self, windows: Sequence[int]) -> tuple[Tensor, Callable[[slice, Tensor], Tensor]]:
        """The tokens [N, T] of some windows, and the sum of the scores of some of them as a function of logits, for gradients."""
        first = next(iter(self.metrics))

        def total(few: slice, logits_NTV: Tensor) -> Tensor:
            each = zip(windows[few], torch.split(logits_NTV, 1), strict=True)
            return torch.stack([self._score(first, logits_1TV, window) for window, logits_1TV in each]).sum()

        return self._windows_NT[list(windows)], total

    @torch.no_grad()
    def _each_logits(self, versions: Sequence[Hashable], windows: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Every window with its logits [1, T, V]."""
        for start in range(0, len(windows), self.batch_size):
            together = windows[start : start + self.batch_size]
            tokens_NT = self._windows_NT[list(together)]
            hidden_NTD = self.forward(together, tokens_NT, versions)
            for few, logits_NTV in logits_of_few(self.forward.model, self.forward.blocks, tokens_NT, hidden_NTD):
                yield from zip(together[few], torch.split(logits_NTV, 1), strict=True)

    def _score(self, name: str, logits_1TV: Tensor, window: int) -> Tensor:
        return self.metrics[name].window_scores(logits_1TV, self._tokens(window), self._targets[name][window])[0]

    def _tokens(self, window: int) -> Tensor:
        return self._windows_NT[window : window + 1]
