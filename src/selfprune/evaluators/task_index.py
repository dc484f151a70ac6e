"""Indexes of lm-eval's thousands of task files only those that a run needs, in a second instead of ten."""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

GROUP = re.compile(rb"^group:", re.MULTILINE)


def index_named(names: Collection[str], folders: Sequence[str]) -> "TaskManager":
    """A task manager that knows, of lm-eval's own tasks, these and all that they name in turn; an unknown name is left out.

    Args:
        names: of tasks, tags or groups.
        folders: of further tasks, which may be named too.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    texts = {path: path.read_bytes() for path in sorted(root.rglob("*.yaml"))}
    found: set[Path] = set()
    wanted, looked_for = set(names), set[str]()
    while wanted:
        found |= {path.parent for path in _files_of(wanted, texts)}
        outermost = [folder for folder in found if not found & {*folder.parents}]
        # Of two tasks of one name lm-eval takes the first of a folder, but the last of several folders.
        ours = [str(folder) for folder in sorted(outermost, reverse=True)]
        manager = lm_eval.tasks.TaskManager(include_path=[*ours, *folders], include_defaults=False)
        looked_for |= wanted
        wanted = _members(manager, names) - {*manager.all_tasks} - looked_for
    return manager


def _files_of(names: Iterable[str], texts: dict[Path, bytes]) -> list[Path]:
    """The files that make a task or group of one of these names, or put a task under such a tag."""
    either = b"|".join(re.escape(name).encode() for name in names)
    makes = re.compile(rb"^(?:task|group|tag):\s*['\"]?(?:" + either + rb")['\"]?\s*(?:#.*)?$", re.MULTILINE)
    lists = re.compile(rb"^\s*-\s*['\"]?(?:" + either + rb")['\"]?\s*(?:#.*)?$", re.MULTILINE)
    return [path for path, text in texts.items() if makes.search(text) or (lists.search(text) and not GROUP.search(text))]


def _members(manager: "TaskManager", names: Iterable[str]) -> set[str]:
    """All that groups of these names name, however deep."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        entry = manager.task_index.get(waiting.pop())
        if entry is None or not entry.cfg:
            continue
        listed = entry.cfg.get("task")
        for item in listed if isinstance(listed, list) else []:
            inner = item.get("task", []) if isinstance(item, dict) and isinstance(item.get("task"), list) else [item]
            for each in inner:
                name = each.get("group", each.get("task")) if isinstance(each, dict) else each
                if isinstance(name, str) and name not in found:
                    found.add(name)
                    waiting.append(name)
    return found
