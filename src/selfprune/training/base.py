"""The contract of trainings: what a pruned model learns from, and how that went.

Shape suffixes: N windows, T tokens.
"""

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.training.gradual_cuts import GradualCuts
from selfprune.training.schedule import Schedule
from selfprune.training.targets import Targets

if TYPE_CHECKING:
    from selfprune.models.loading import LoadedModel

OnStep = Callable[[int, str], None]
"""Called with the steps done, and a note."""


class Trained(str, Enum):
    """What of a model is trained."""

    FULL = "FULL"
    LORA = "LORA"
    HIRA = "HIRA"


@dataclass
class Course:
    """How a training went.

    Attributes:
        n_tokens: tokens seen so far.
        scores: of the checks, the first before any step.
        best: number of the check whose weights are kept.
        ending: why it ended, as the end of a sentence.
        seconds: of the steps.
        n_cuts: that were made on the way; 0 where all went before.
    """

    n_tokens: int = 0
    scores: list[float] = field(default_factory=list)
    best: int = 0
    ending: str = "all tokens were seen"
    seconds: float = 0.0
    n_cuts: int = 0


@dataclass(frozen=True)
class Lesson:
    """What a model learns from, and where its state is kept meanwhile.

    Attributes:
        windows_NT: tokens.
        targets: what the metric knows of them; None where there is no metric.
        check: scores the model as it stands, lower is better.
        dense: the dense model, which is left alone.
        seed: of the order of the windows.
        folder: for what a killed training goes on from.
        on_step: called after every step.
        cuts: that are made on the way, until the last of which nothing is checked; None where all went before.
    """

    windows_NT: Tensor
    targets: Targets | None
    check: Callable[[], float]
    dense: "LoadedModel"
    seed: int
    folder: Path
    on_step: OnStep = lambda *_: None
    cuts: GradualCuts | None = None


class Training(ABC):
    """What is done with a pruned model before it is reported once more; a dataclass that is its own config schema."""

    rows: list[str]
    """Rows of the report whose models are trained; none where there is no training."""

    def check(self, names: Sequence[str]) -> None:
        """Refuses rows that the report will not have.

        Args:
            names: of its pruned rows.

        Raises:
            ConfigError: when one is none of them.
        """
        if unknown := [name for name in self.rows if name not in names]:
            raise ConfigError(
                f"training.rows names {unknown[0]}, but the pruned rows of the report are {', '.join(names)}; name some of these"
            )

    def check_schedule(self, schedule: Schedule) -> None:
        """Refuses cuts on the way where there is no way.

        Raises:
            ConfigError: when there are some.
        """
        if schedule.n_cuts > 1:
            raise ConfigError(
                f"schedule.n_cuts={schedule.n_cuts} prunes in steps between which the whole model learns; choose a training that "
                "steps through it as a whole, such as training=distillation or next_token, or schedule=one_shot"
            )

    def held_bytes(self, n_parameters: int) -> int:
        """Memory beside the dense model while a model is trained."""
        return 0

    def disk_bytes(self, n_parameters: int, n_tokens_per_window: int, n_vocabulary: int) -> int:
        """Disk for the dense model's answers, for the state that a killed training goes on from, and for what was trained."""
        return 0

    def n_pass_tokens(self) -> int:
        """Tokens of dense passes that all of it takes as long as."""
        return 0
