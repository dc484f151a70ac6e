"""The evaluator contract."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found out about a model.

    Attributes:
        score: what the search compares, lower is better; NaN or infinite when the model is broken.
        metrics: further numbers by name.
        n_tokens: tokens that went through the model.
        seconds: wall time.
    """

    score: float
    metrics: dict[str, Any]
    n_tokens: int
    seconds: float


class Evaluator(Protocol):
    """Scores a model at a fidelity.

    Example:
        >>> evaluator.evaluate(model, fidelity=8).score
    """

    def evaluate(self, model: "PreTrainedModel", fidelity: int) -> Evaluation:
        """Scores the model on the first `fidelity` windows or documents, the same ones at every call."""
        ...
