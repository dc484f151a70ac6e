"""Finds lm-eval tasks by name and loads their documents."""

import contextlib
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfprune.checkpoints.source import out_of_cache_where_out_of_reach
from selfprune.embedded.tasks import TASK_FOLDER
from selfprune.errors import ConfigError
from selfprune.evaluators.task_index import index_named
from selfprune.evaluators.task_mistakes import chain, explained

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def load_tasks(
    names: Sequence[str], include_path: str | None, own: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Name -> what lm-eval makes of it: its `tasks` and its `groups`, each by name, with their documents.

    Args:
        names: of tasks, tags or groups.
        include_path: a folder of further task YAML files.
        own: name -> what a task is made of that stands in no file.

    Raises:
        ConfigError: when a name is unknown, or two names ask one task in different ways.
        DataError: when documents are out of reach or broken, or a task does not fit them.
    """
    own = own or {}
    found = [name for name in names if name not in own]
    manager = _find_tasks(found, include_path)
    paths = [manager.task_index[name].yaml_path for name in found]
    with _from_the_hub() if any(path is None or TASK_FOLDER not in path.parents for path in paths) else contextlib.nullcontext():
        loaded = {name: dict(manager.load([own[name]])) if name in own else _load(name, manager) for name in names}
    _share(loaded)
    return loaded


def _from_the_hub() -> contextlib.AbstractContextManager[None]:
    import datasets

    return out_of_cache_where_out_of_reach(datasets.config)


def _find_tasks(names: Sequence[str], include_path: str | None) -> "TaskManager":
    """A task manager that knows all names; lm-eval's own thousands, which take ten seconds to index, only if needed."""
    from lm_eval.tasks import TaskManager

    folders = [str(TASK_FOLDER), *([include_path] if include_path else [])]
    manager = TaskManager(include_path=folders, include_defaults=False)
    unknown = set(names) - set(manager.all_tasks)
    if unknown:
        _check_readable(unknown, include_path)
        manager = index_named(unknown, folders)
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


def _check_readable(unknown: set[str], include_path: str | None) -> None:
    """Refuses files that lm-eval would leave out without a word, where they may hold a task that is asked for."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(Path(include_path).rglob("*.yaml")) if include_path else []:
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # whatever YAML, or a file that it includes, raises
            text = path.read_text(encoding="utf-8", errors="replace")
            if any(re.search(rf"\b{re.escape(name)}\b", text) for name in unknown):
                raise ConfigError(f"{path} must be the YAML of an lm-eval task, but cannot be read: {chain(error)}") from error


def _load(name: str, manager: "TaskManager") -> dict[str, Any]:
    entry = manager.task_index[name]
    try:
        return dict(manager.load([name]))
    except Exception as error:  # data sets, templates and a task's own code raise anything
        config = entry.cfg or {}
        for member in _members(config, entry.tags):
            if member not in manager.task_index:
                raise ConfigError(
                    f"the lm-eval group {name!r} ({entry.yaml_path}) names {member!r}, which is no known task; correct it there"
                ) from error
            _load(member, manager)
        raise explained(name, entry.yaml_path, config, error) from error


def _share(loaded: dict[str, dict[str, Any]]) -> None:
    """Lets a task that is named several times, as by itself and by a group, be one object."""
    tasks: dict[str, Any] = {}
    for name, each in loaded.items():
        for task_name, task in each["tasks"].items():
            first = tasks.setdefault(task_name, task)
            if first is not task and first.dump_config() != task.dump_config():
                raise ConfigError(
                    f"{name!r} of harness.tasks or harness.search_tasks asks the lm-eval task {task_name!r} in another way than "
                    "a name before it, so that its numbers would mean two things; leave one of the two out"
                )
        each["tasks"] = {task_name: tasks[task_name] for task_name in each["tasks"]}


def _members(config: dict[str, Any], tagged: set[str]) -> list[str]:
    """The names that a group lists, or the tasks of a tag; none of a task."""
    if "task" in config and "group" not in config:
        return []
    listed = config.get("task", sorted(tagged))
    return [member for member in listed if isinstance(member, str)] if isinstance(listed, list) else []
