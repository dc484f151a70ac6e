"""Finds lm-eval tasks by name and loads their documents."""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfprune.embedded.tasks import TASK_FOLDER
from selfprune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def find_tasks(names: Sequence[str], include_path: str | None) -> "TaskManager":
    """A task manager that knows all names; lm-eval's own thousands, which take ten seconds to index, only if needed."""
    from lm_eval.tasks import TaskManager

    folders = [str(TASK_FOLDER), *([include_path] if include_path else [])]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders)
    for name in names:
        if name not in manager.all_tasks:
            nearest = difflib.get_close_matches(name, manager.all_tasks, n=10, cutoff=0.0)
            raise ConfigError(
                f"harness.tasks and harness.search_tasks must name lm-eval tasks, got {name!r}, which is none of the "
                f"{len(manager.all_tasks):,} known; nearest first: {', '.join(nearest)}; add your own by harness.include_path"
            )
    return manager


def load_task(name: str, manager: "TaskManager") -> dict[str, Any]:
    """What lm-eval makes of a name: its `tasks` and its `groups`, each by name, with their documents.

    Args:
        name: of a task, a tag or a group.
        manager: knows it.

    Raises:
        DataError: when the documents are out of reach.
    """
    try:
        return dict(manager.load([name]))
    # What `datasets` raises out of reach of the hub: ConnectionError, DatasetNotFoundError, or ValueError when half in the cache.
    except (OSError, ValueError) as error:
        raise DataError(
            f"the documents of the lm-eval task {name!r} must come from the Hugging Face hub or its cache, got "
            f"{type(error).__name__}: {' '.join(str(error).split())}; run it once with a network (without HF_HUB_OFFLINE), or "
            f"name other tasks in harness.tasks and harness.search_tasks: the selfprune_ ones need no network"
        ) from error
