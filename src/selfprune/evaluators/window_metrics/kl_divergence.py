"""KL divergence from the dense model's next-token distribution to the pruned model's.

The dense distribution is kept as its top K log-probabilities and the mass of the tail, because full logits of a split do not
fit for large vocabularies. The tail is compared as one outcome, so the value is a lower bound of the full divergence, exact
when K reaches the vocabulary. Shape suffixes: N windows, T tokens, V vocabulary, K kept targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.evaluators.window_metrics.base import WindowMetric, mean_per_window


@dataclass
class KLDivergence(WindowMetric):
    """KL(dense‖pruned) in nats per token.

    Attributes:
        n_top: dense log-probabilities kept per token (K).
    """

    title: ClassVar[str] = "KL to the dense model (nats per token)"

    n_top: int = 512

    def __post_init__(self) -> None:
        if self.n_top < 1:
            raise ConfigError(f"evaluator.n_top must be at least 1, got {self.n_top}; 512 is a good value")

    def kept_bytes(self, vocab_size: int) -> int:
        """The top K log-probabilities in fp32, and their token ids."""
        return 8 * min(self.n_top, vocab_size)

    def prepare(self, logits_NTV: Tensor, batch_NT: Tensor) -> tuple[Tensor, ...]:
        """Top K dense log-probabilities and their token ids [N, T, K]."""
        logprobs_NTV = torch.log_softmax(logits_NTV.float(), dim=-1)
        top_NTK = logprobs_NTV.topk(min(self.n_top, logprobs_NTV.shape[-1]), dim=-1)
        return top_NTK.values, top_NTK.indices.to(torch.int32)

    def window_scores(self, logits_NTV: Tensor, batch_NT: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Σ_K p·log(p/q) + p_tail·log(p_tail/q_tail), mean over the tokens of each window [N]."""
        logp_NTK, ids_NTK = targets
        logits_NTV = logits_NTV.float()
        logq_NTK = logits_NTV.gather(-1, ids_NTK.long()) - logits_NTV.logsumexp(dim=-1, keepdim=True)
        kl_NT = (logp_NTK.exp() * (logp_NTK - logq_NTK)).sum(dim=-1)
        if logp_NTK.shape[-1] < logits_NTV.shape[-1]:
            tail_p_NT, tail_q_NT = _tail_mass(logp_NTK), _tail_mass(logq_NTK)
            kl_NT = kl_NT + tail_p_NT * (tail_p_NT.log() - tail_q_NT.log())
        return mean_per_window(kl_NT)


def _tail_mass(logprobs_NTK: Tensor) -> Tensor:
    """Probability outside the top K [N, T], kept above the rounding error of fp32."""
    return (1 - logprobs_NTK.exp().sum(dim=-1)).clamp_min(1e-7)
