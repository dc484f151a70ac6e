"""Distillation: learning the dense model's distributions of the next token (Hinton et al., 2015, arXiv 1503.02531).

The loss is KL(dense‖pruned) per token, of the dense model's top tokens and the mass of its tail, which are computed once and lie
on disk, 8 bytes a token and top token. `hidden_weight` adds as many times the loss of `hidden_states`.

Limits: no temperature. A narrow text lowers the KL there and may raise it elsewhere.
"""

from dataclasses import dataclass
from typing import ClassVar

from selfprune.errors import ConfigError
from selfprune.evaluators.window_metrics.base import WindowMetric
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.training.loop import WholeModelTraining


@dataclass
class Distillation(WholeModelTraining):
    """With the dense model as teacher.

    Attributes:
        n_top: tokens of every distribution that are kept.
        hidden_weight: of the loss on hidden states, beside a KL in nats per token; 0 does without.
    """

    n_top: int = 64
    hidden_weight: float = 0.0
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_top < 1:
            raise ConfigError(f"training.n_top must be at least 1, got {self.n_top}; 64 is a good value")
        if not 0 <= self.hidden_weight < float("inf"):
            raise ConfigError(
                f"training.hidden_weight must be finite and not negative, got {self.hidden_weight:g}; 0 does without"
            )

    def metric(self) -> WindowMetric:
        """KL to the dense model."""
        return KLDivergence(self.n_top)

    def weight_of_hidden(self) -> float:
        """See `WholeModelTraining`."""
        return self.hidden_weight

    def n_pass_tokens(self) -> int:
        """With hidden states, the dense model sees every window of every step."""
        return super().n_pass_tokens() + (self.n_tokens * len(self.rows) if self.hidden_weight else 0)
