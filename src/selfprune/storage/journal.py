"""Append-only JSON lines that a resumed run reads back instead of repeating the work."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from selfprune.errors import ConfigError
from selfprune.storage.recorded_files import Kind, at_line, brief, checked, conforming, parsed_lines, read_bytes
from selfprune.storage.whole_files import disk_error

logger = logging.getLogger(__name__)

REMOVE_THE_REST = "restore the file from a copy, or remove this line and all after it, which a resumed run makes again"


class NothingElse(TypedDict):
    """The schema of a record that is all key."""


def _no_fault(_: object) -> str:
    return ""


class _NotRecordedError(Exception):
    """Ends a block in which nothing may be made."""


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
        >>> record = journal.once({"candidate": 0, "start": 0}, lambda: {"scores": evaluate()}, Scores)

    Attributes:
        n_recalled: records that were read back.
        n_recorded: records that can be read back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_recalled = 0
        self._recorded = _read_whole_lines(path)
        self.n_recorded = len(self._recorded)
        self._recalls_alone = False

    def once(
        self, key: dict[str, Any], make: Callable[[], dict[str, Any]], kind: type[Kind], check: Callable[[Kind], str] = _no_fault
    ) -> Kind:
        """The record of one piece of work, recalled or made now.

        Args:
            key: what identifies the work; must be the same when the run is repeated.
            make: does the work and returns what is to be recorded beside the key.
            kind: the schema of what is recorded beside the key; no other keys may stand there.
            check: says what is wrong with a record of that kind, or nothing.

        Returns:
            what is recorded beside the key.

        Raises:
            ConfigError: when the file holds another record in this place, or one of another kind, so that the run cannot be
                continued.
            SelfpruneError: when the disk is full.
        """
        plain_key: dict[str, Any] = json.loads(json.dumps(key))
        if self._recalls_alone and not self._is_next(plain_key):
            raise _NotRecordedError
        if self.n_recalled < len(self._recorded):
            payload = checked(self._payload(plain_key), kind, at_line(self.path, self.n_recalled), REMOVE_THE_REST)
            if fault := check(payload):
                raise self._refusal(fault)
            self.n_recalled += 1
            return payload
        new = make()
        # Read back at once, so that a run goes on with the very values that a resumed one will recall.
        made = conforming(json.loads(json.dumps(new)), kind)
        self._append(json.dumps({**key, **new}))
        return made

    @contextmanager
    def recalling(self) -> Iterator[None]:
        """While open, nothing is made: the first piece of work that is not recorded next ends the block, without an error."""
        self._recalls_alone = True
        try:
            with contextlib.suppress(_NotRecordedError):
                yield
        finally:
            self._recalls_alone = False

    def _is_next(self, key: dict[str, Any]) -> bool:
        if self.n_recalled >= self.n_recorded:
            return False
        record = self._recorded[self.n_recalled]
        return all(name in record and record[name] == value for name, value in key.items())

    def _payload(self, key: dict[str, Any]) -> dict[str, Any]:
        """What the next record holds beside its key, which must be this one."""
        record = self._recorded[self.n_recalled]
        for name, expected in key.items():
            if record.get(name) != expected:
                raise self._refusal(
                    f"it should record {name!r} as {brief(expected)}, but records {brief(record.get(name))}; the code, data or "
                    f"config has changed since, or the line"
                )
        return {name: value for name, value in record.items() if name not in key}

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(
            f"{at_line(self.path, self.n_recalled)} does not belong to this run: {reason}; start a new run folder, or "
            f"{REMOVE_THE_REST}"
        )

    def _append(self, line: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(self.path, error) from error


def _read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, whose last line is removed if it was cut short while it was written."""
    if not path.exists():
        return []
    content = read_bytes(path, REMOVE_THE_REST)
    whole = content[: content.rfind(b"\n") + 1]
    rest = content[len(whole) :]
    if rest and not rest.startswith(b"{"):  # nothing that was written here
        whole = content
    lines = parsed_lines(whole, path, REMOVE_THE_REST)
    records = [checked(line, dict[str, Any], at_line(path, i), REMOVE_THE_REST) for i, line in enumerate(lines)]
    if len(whole) < len(content):
        logger.warning("%s ended in a line that was cut short; the line was removed", path)
        os.truncate(path, len(whole))
    return records
