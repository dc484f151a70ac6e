"""Which lm-eval tasks a run asks for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfprune.embedded.tasks import TASKS
from selfprune.errors import ConfigError
from selfprune.storage.path_fields import path_field


@dataclass
class HarnessConfig:
    """Which lm-eval tasks to run, and how.

    Attributes:
        tasks: tasks or groups of the report.
        search_tasks: tasks or groups for the search's finalists; none may be among `tasks`.
        limit: documents per task; None for all.
        batch_size: requests per forward pass.
        include_path: a folder of further task YAML files; the embedded tasks are always there.
        num_fewshot: solved examples before each document; None for each task's own number. Tasks whose own number is 0 keep it,
            as in lm-eval.
    """

    tasks: list[str] = field(default_factory=lambda: [f"{task}_report" for task in TASKS])
    search_tasks: list[str] = field(default_factory=lambda: [f"{task}_search" for task in TASKS])
    limit: int | None = None
    batch_size: int = 32
    include_path: str | None = path_field(None)
    num_fewshot: int | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("limit", 1), ("batch_size", 1), ("num_fewshot", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"harness.{name} must be at least {lowest}, got {value}")
        check_apart(self.tasks, self.search_tasks)
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ConfigError(
                f"harness.include_path must be a folder of lm-eval YAML files, got {self.include_path!r}; correct it"
            )


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
