"""No training: the pruned model is reported as it was pruned."""

from dataclasses import dataclass
from typing import ClassVar

from selfprune.training.base import Training


@dataclass
class NoTraining(Training):
    """Nothing is trained."""

    rows: ClassVar[list[str]] = []  # type: ignore[misc]
