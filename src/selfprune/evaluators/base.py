"""What evaluators return."""

from dataclasses import dataclass
from typing import Any


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
