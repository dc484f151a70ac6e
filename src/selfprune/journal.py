"""Append-only JSON lines that a resumed run reads back instead of repeating the work."""

import contextlib
import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfprune.errors import ConfigError, SelfpruneError

logger = logging.getLogger(__name__)


class Journal:
    """A file of records; what it holds already is recalled in order, what follows is made and appended.

    A run that is broken off and started again from its beginning thus takes the same way: its proposers draw from the same
    seeds and hear the recorded scores, until the records end and new work begins. A line that a kill cut short is removed.

    Args:
        path: the file; created with its first record.

    Raises:
        ConfigError: when the file holds something else.

    Example:
        >>> journal = Journal(folder / "evaluations.jsonl")
        >>> record = journal.once({"candidate": 0, "start": 0}, lambda: {"scores": evaluate()})

    Attributes:
        n_recalled: records that were read back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_recalled = 0
        self._recorded = _read_whole_lines(path)

    def once(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of one piece of work, recalled or made now.

        Args:
            key: what identifies the work; must be the same when the run is repeated.
            make: does the work and returns what is to be recorded beside the key.

        Raises:
            ConfigError: when the file holds another record in this place, so that the run cannot be continued.
            SelfpruneError: when the disk is full.
        """
        if self.n_recalled < len(self._recorded):
            record = self._recorded[self.n_recalled]
            plain_key = json.loads(json.dumps(key))
            found = {name: record.get(name) for name in key}
            if found != plain_key:
                name = next(name for name in key if found[name] != plain_key[name])
                raise ConfigError(
                    f"{self.path} cannot be continued: its line {self.n_recalled + 1} should record {name!r} as "
                    f"{_brief(plain_key[name])}, but records {_brief(found[name])}; the code, data or config has changed "
                    f"since, so start a new run folder"
                )
            self.n_recalled += 1
            return record
        line = json.dumps({**key, **make()})
        self._append(line)
        # Read back at once, so that a run goes on with the very values that a resumed one will recall.
        made: dict[str, Any] = json.loads(line)
        return made

    def _append(self, line: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(self.path, error) from error


RESUME_A_RUN = "continue with `python -m selfprune resume=<run folder>`"


def write_whole(path: Path, content: str | bytes, remedy: str = RESUME_A_RUN) -> None:
    """Writes a file so that it appears whole or not at all.

    Args:
        path: the file.
        content: what it will hold.
        remedy: what to do when that fails, as `disk_error` takes it.

    Raises:
        SelfpruneError: when the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise disk_error(path, error, remedy) from error


def disk_error(path: Path, error: OSError, remedy: str = RESUME_A_RUN) -> SelfpruneError:
    """The paragraph for a write that failed.

    Args:
        path: what should have been written.
        error: of the system.
        remedy: what to do once the path can be written again.
    """
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if is_full else (error.strerror or str(error))
    first = "free some space" if is_full else "see to it that it can be written"
    return SelfpruneError(f"{path} could not be written: {reason}. Everything before it is kept; {first} and {remedy}")


def _read_whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        logger.warning("%s ended in a line that was cut short; the line was removed", path)
        os.truncate(path, len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read back: {error}; restore it from a copy or start a new run folder") from error


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
