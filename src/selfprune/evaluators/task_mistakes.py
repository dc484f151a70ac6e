"""Whatever is wrong with an lm-eval task or its documents, told in one paragraph."""

import json
from pathlib import Path
from typing import Any

from selfprune.errors import DataError

LIBRARIES_OF_DATA = ("datasets.", "huggingface_hub.", "httpx.", "requests.")
LOCAL_FORMATS = ("arrow", "csv", "json", "pandas", "parquet", "text", "xml")


def unfit(name: str, path: Any, config: dict[str, Any], error: Exception, at: str = "") -> DataError:
    """One paragraph on a task that cannot be used as it is written, or does not fit its documents.

    Args:
        name: of the task.
        path: of its YAML file, where it has one.
        config: what stands in the file.
        error: what lm-eval, a template or the task's own code raised.
        at: where, such as ` with document 3`.
    """
    said = chain(error)
    words = [word.strip("'\"`,.:;") for word in said.split()]
    fields = [
        key for key, value in config.items() if any(word and _mentions(key, value, word) for word in words if len(word) > 1)
    ]
    where = f" (see {', '.join(fields)})" if fields else ""
    return DataError(
        f"the lm-eval task {name!r}{f' of {path}' if path else ''} cannot be used{at}: {said}{where}; correct the task or its "
        "data, or leave it out of harness.tasks and harness.search_tasks"
    )


def _mentions(key: str, value: Any, word: str) -> bool:
    texts = (
        key.startswith(("doc_to_", "process_")) or key.endswith(("_split", "_prefix")) or key in ("output_type", "description")
    )
    return texts and word in str(value)


def explained(name: str, path: Any, config: dict[str, Any], error: Exception) -> DataError:
    """One paragraph on a task that cannot be opened.

    Args:
        name: of the task.
        path: of its YAML file, where it has one.
        config: what stands in the file.
        error: what was raised.
    """
    broken = _broken_file(config)
    if broken:
        return DataError(f"the documents of the lm-eval task {name!r}{f' of {path}' if path else ''} cannot be read: {broken}")
    dataset = str(config.get("dataset_path", ""))
    is_remote = dataset and dataset not in LOCAL_FORMATS and not Path(dataset).exists() and "custom_dataset" not in config
    if is_remote and isinstance(error, OSError | ValueError) and _is_raised_by(error, LIBRARIES_OF_DATA):
        return DataError(
            f"the documents of the lm-eval task {name!r} must come from the Hugging Face hub or its cache, got {chain(error)}; "
            f"run it once with a network (without HF_HUB_OFFLINE), or name other tasks in harness.tasks and "
            f"harness.search_tasks: the selfprune_ ones need no network"
        )
    return unfit(name, path, config, error)


def chain(error: BaseException | None) -> str:
    """What was raised, and of what it came, in one line.

    Args:
        error: the last of them.
    """
    said: list[str] = []
    while error is not None and len(said) < 3:
        said.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        error = error.__cause__ or error.__context__
    return ", because of ".join(said)


def _is_raised_by(error: BaseException, modules: tuple[str, ...]) -> bool:
    step = error.__traceback__
    while step is not None:
        if f"{step.tb_frame.f_globals.get('__name__')}.".startswith(modules):
            return True
        step = step.tb_next
    return False


def _broken_file(config: dict[str, Any]) -> str | None:
    """What is wrong with the files of documents that a task names on this machine."""
    named = (config.get("dataset_kwargs") or {}).get("data_files") or []
    listed = [*named.values()] if isinstance(named, dict) else [named]
    for path in (Path(each) for part in listed for each in (part if isinstance(part, list) else [part])):
        if "://" in str(path) or any(letter in str(path) for letter in "*?["):
            continue
        if not path.is_file():
            return f"there is no file {path}; correct dataset_kwargs.data_files"
        if not path.stat().st_size:
            return f"{path} is empty; put one document a line into it"
        if path.suffix == ".jsonl" and (said := _broken_line(path)):
            return said
    return None


def _broken_line(path: Path) -> str | None:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f"line {number} of {path} is no JSON object; write one document a line, as {{...}}"
            except ValueError as error:
                return f"line {number} of {path} is no JSON ({error}); correct it"
    return None
