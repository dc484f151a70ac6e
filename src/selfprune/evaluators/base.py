"""What evaluators return, and how many logits lm-eval may hold."""

from dataclasses import dataclass
from typing import Any

N_LOGITS_AT_ONCE = 2**24
"""Of scored tokens, whatever the vocabulary and the batch; twice as many let peak memory grow and saved no time."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found out about a model.

    Attributes:
        score: what the search compares, lower is better; NaN or infinite when the model is broken.
        metrics: further results by name.
        n_tokens: tokens that went through the model.
        seconds: wall time.
    """

    score: float
    metrics: dict[str, Any]
    n_tokens: int
    seconds: float
