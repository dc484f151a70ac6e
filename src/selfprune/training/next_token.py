"""Next-token training: the pruned model goes on learning from text, without a teacher.

Limits: it learns the text, and not what the dense model was: with little text a large model forgets more than it regains.
"""

from dataclasses import dataclass

from selfprune.evaluators.window_metrics.base import WindowMetric
from selfprune.evaluators.window_metrics.perplexity import Perplexity
from selfprune.training.loop import WholeModelTraining


@dataclass
class NextToken(WholeModelTraining):
    """The negative log-likelihood of the text."""

    def metric(self) -> WindowMetric:
        """Nats per token."""
        return Perplexity()
