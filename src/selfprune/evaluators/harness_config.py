"""Which lm-eval tasks a run asks for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfprune.embedded.tasks import TASKS
from selfprune.errors import ConfigError
from selfprune.evaluators.pairs import NAME as PAIRS
from selfprune.evaluators.pairs import read_pairs
from selfprune.storage.path_fields import path_field


@dataclass
class HarnessConfig:
    """Which lm-eval tasks to run, and how.

    Attributes:
        tasks: tasks or groups of the report.
        search_tasks: tasks or groups for the search's finalists; none may be among `tasks`.
        limit: documents per task; None for all.
        batch_size: requests per forward pass.
        pairs: a file of JSON lines with `prompt` and `reference`, which the report asks besides `tasks`; the model writes the
            rest of the line.
        pairs_tokens: tokens that it writes at most.
        include_path: a folder of further task YAML files; the embedded tasks are always there.
        num_fewshot: solved examples before each document; None for each task's own number. Tasks whose own number is 0 keep it,
            as in lm-eval.
    """

    tasks: list[str] = field(default_factory=lambda: [f"{task}_report" for task in TASKS])
    search_tasks: list[str] = field(default_factory=lambda: [f"{task}_search" for task in TASKS])
    limit: int | None = None
    batch_size: int = 32
    pairs: str = path_field()
    pairs_tokens: int = 64
    include_path: str | None = path_field(None)
    num_fewshot: int | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("limit", 1), ("batch_size", 1), ("num_fewshot", 0), ("pairs_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"harness.{name} must be at least {lowest}, got {value}")
        check_apart(self.tasks, self.search_tasks)
        if self.pairs:
            read_pairs(Path(self.pairs))
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ConfigError(
                f"harness.include_path must be a folder of lm-eval YAML files, got {self.include_path!r}; correct it"
            )

    @property
    def report_tasks(self) -> list[str]:
        """All that the report asks."""
        return [*self.tasks, *([PAIRS] if self.pairs else [])]


def check_apart(report: Sequence[str], search: Sequence[str]) -> None:
    """Refuses tasks that are both of the report and of the search.

    Raises:
        ConfigError: when there is one.
    """
    for name in sorted({*report} & {*search}):
        raise ConfigError(
            "harness.tasks and harness.search_tasks must not share a task, or the search would choose on what the report "
            f"measures; both hold {name!r}, so leave it out of one of them"
        )
