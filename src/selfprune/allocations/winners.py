"""The winner of a finished run, read back from its folder."""

from collections.abc import Sequence
from pathlib import Path

from selfprune.allocations.archive import read_archive
from selfprune.allocations.candidate import State
from selfprune.allocations.report_file import read_outcome
from selfprune.allocations.unit import Allocation, Unit
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
        winner = read_outcome(run_folder)["search"]["winner"]["id"]
        candidates = read_archive(run_folder / "archive.jsonl")
    except ConfigError as error:
        raise ConfigError(f"{expected}, got {run_folder}, which tells no winner: {error}") from error
    if winner >= len(candidates) or candidates[winner].state is not State.COMPLETE:
        raise ConfigError(
            f"{expected}, got {run_folder}, which tells no winner: report.json names candidate {winner}, and archive.jsonl has "
            f"no such candidate that was scored to the end; give another run, or restore the two from copies"
        )
    return candidates[winner].allocation


def fits(allocation: Allocation, units: Sequence[Unit]) -> bool:
    """Whether an allocation names exactly these units and removes no more of any than there is."""
    sizes = {unit.name: unit.n_items for unit in units}
    return allocation.keys() == sizes.keys() and all(0 <= allocation[name] <= size for name, size in sizes.items())
