"""KL divergence from the dense model's next-token distribution to the pruned model's.

The dense distribution is kept as its top K log-probabilities and the mass of the tail, because full logits of a split do not
fit for large vocabularies. The tail is compared as one outcome, so the value is a lower bound of the full divergence, exact
when K reaches the vocabulary.

With p, q the dense and the pruned distribution, P and S their masses on the top K, and r = (1-P)/(1-S), the gradient by the
logit of a token among the top K is q·(P + r·(1-S)) - p, and q·(P - r·S) by that of another.

Shape suffixes: N windows, T tokens, M tokens of all windows, V vocabulary, K kept targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.evaluators.window_metrics.base import WindowMetric, few_at_once, mean_per_window

MIN_TAIL = 1e-7
"""Mass of a tail at least, above the rounding error of fp32."""


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
        n_top = min(self.n_top, logits_NTV.shape[-1])
        found = [part.float().log_softmax(dim=-1).topk(n_top, dim=-1) for part in few_at_once(logits_NTV.flatten(0, 1))]
        shape = (*logits_NTV.shape[:-1], n_top)
        values, ids = (torch.cat([part[i] for part in found]).view(shape) for i in range(2))
        return values, ids.to(torch.int32)

    def window_scores(self, logits_NTV: Tensor, batch_NT: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Σ_K p·log(p/q) + p_tail·log(p_tail/q_tail), mean over the tokens of each window [N]."""
        logp_NTK, ids_NTK = targets
        flat = (each.flatten(0, 1) for each in (logits_NTV, logp_NTK, ids_NTK.long()))
        kl_M: Tensor = _TokenKL.apply(*flat)  # type: ignore[no-untyped-call]
        return mean_per_window(kl_M.view(logits_NTV.shape[:-1]))


class _TokenKL(torch.autograd.Function):
    """KL of every token [M], and its gradient by the logits, of which few are held in fp32 at once."""

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, logp_MK: Tensor, ids_MK: Tensor) -> Tensor:
        parts = few_at_once(logits_MV)
        logq_parts = []
        for part_V, ids_K in zip(parts, torch.split(ids_MK, len(parts[0])), strict=True):
            part_V = part_V.float()
            logq_parts.append(part_V.gather(-1, ids_K) - part_V.logsumexp(dim=-1, keepdim=True))
        logq_MK = torch.cat(logq_parts)
        ctx.save_for_backward(logits_MV, logp_MK, ids_MK, logq_MK)
        kl_M = (logp_MK.exp() * (logp_MK - logq_MK)).sum(dim=-1)
        if logp_MK.shape[-1] < logits_MV.shape[-1]:
            tail_p_M, tail_q_M = (_tail_mass(each).clamp_min(MIN_TAIL) for each in (logp_MK, logq_MK))
            kl_M = kl_M + tail_p_M * (tail_p_M.log() - tail_q_M.log())
        return kl_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits_MV, logp_MK, ids_MK, logq_MK = ctx.saved_tensors
        p_MK, q_MK, gradient_M1 = logp_MK.exp(), logq_MK.exp(), gradients[0][:, None].float()
        mass_p_M1, mass_q_M1 = (each_MK.sum(dim=-1, keepdim=True) for each_MK in (p_MK, q_MK))
        ratio_M1 = torch.zeros_like(gradient_M1)
        if logp_MK.shape[-1] < logits_MV.shape[-1]:
            tail_q_M1 = 1 - mass_q_M1
            # a tail that is held up does not move
            ratio_M1 = torch.where(tail_q_M1 > MIN_TAIL, (1 - mass_p_M1).clamp_min(MIN_TAIL) / tail_q_M1, 0)
        among_MK = (q_MK * (mass_p_M1 + ratio_M1 * (1 - mass_q_M1)) - p_MK) * gradient_M1
        other_M1 = (mass_p_M1 - ratio_M1 * mass_q_M1) * gradient_M1
        by_logit_MV = torch.empty_like(logits_MV)
        parts = few_at_once(logits_MV)
        rest = (torch.split(each, len(parts[0])) for each in (by_logit_MV, ids_MK, among_MK, other_M1))
        for part_V, out_V, ids_K, among_K, other_1 in zip(parts, *rest, strict=True):
            out_V.copy_(part_V.softmax(dim=-1, dtype=torch.float32).mul_(other_1).scatter_(-1, ids_K, among_K))
        return by_logit_MV, None, None


def _tail_mass(logprobs_MK: Tensor) -> Tensor:
    """Probability outside the top K [M]."""
    return 1 - logprobs_MK.exp().sum(dim=-1)
