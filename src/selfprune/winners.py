"""The winner of a finished run, read back from its folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from selfprune.allocation import Allocation, Unit
from selfprune.archive import read_archive
from selfprune.errors import ConfigError


def read_winner(run_folder: Path, expected: str) -> Allocation:
    """The allocation of a run's winner.

    Args:
        run_folder: of the run.
        expected: what the option that named the folder must be, for the error message.

    Raises:
        ConfigError: when the folder holds no finished run.
    """
    try:
        report = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
        winner: int = report["search"]["winner"]["id"]
        return read_archive(run_folder / "archive.jsonl")[winner].allocation
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(
            f"{expected}, got {run_folder}, whose report.json and archive.jsonl tell no winner ({type(error).__name__}: {error})"
        ) from error


def fits(allocation: Allocation, units: Sequence[Unit]) -> bool:
    """Whether an allocation names exactly these units and removes no more of any than there is."""
    sizes = {unit.name: unit.n_items for unit in units}
    return allocation.keys() == sizes.keys() and all(0 <= allocation[name] <= size for name, size in sizes.items())
