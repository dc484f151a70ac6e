"""`report.json` of a finished run, as far as it is read back: the report writes it, and winners, tables and notebooks read it."""

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from selfprune.errors import ConfigError
from selfprune.storage.environment import Environment
from selfprune.storage.recorded_files import Count, Score, Text, read_json


class Row(TypedDict):
    """One allocation on the report split."""

    name: Text
    sparsity: Score
    kl: Score
    perplexity: Score
    tasks: dict[str, dict[str, Any]]
    n_tokens: Count
    seconds: Score


class Winner(TypedDict):
    """The candidate that won."""

    id: Count


class MainSearch(TypedDict):
    """What the main search came to."""

    winner: Winner


class _OfWinner(TypedDict):
    sparsities: dict[Text, Score]


class _OfSearch(TypedDict):
    winner: _OfWinner


class _Shares(TypedDict):
    search: _OfSearch


class Outcome(TypedDict):
    """What a later run or pruning reads; there are more keys everywhere."""

    search: MainSearch


class Report(Outcome):
    """What tables and notebooks read besides."""

    rows: list[Row]
    environment: Environment


def read_outcome(folder: Path) -> Outcome:
    """The part of a finished run's report that names its winner.

    Args:
        folder: of the run.

    Raises:
        ConfigError: when the folder holds none.
    """
    return read_json(_path(folder), Outcome, _remedy(folder), extra=True)


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished run.

    Args:
        folder: of the run.

    Raises:
        ConfigError: when the folder holds none.
    """
    return dict(read_json(_path(folder), Report, _remedy(folder), extra=True))


def read_winner_sparsities(folder: Path) -> dict[str, float]:
    """Unit name -> the share that the winner of a finished run removed of it.

    Args:
        folder: of the run.

    Raises:
        ConfigError: when the folder holds no report, or one of an earlier version, which did not record them.
    """
    remedy = (
        "earlier versions did not record it; read the shares from the pruned model with `python -m selfprune.inspect "
        f"{folder / 'model'}`, or repeat the run with this version in a new run_folder"
    )
    return read_json(_path(folder), _Shares, remedy, extra=True)["search"]["winner"]["sparsities"]


def _path(folder: Path) -> Path:
    path = folder / "report.json"
    if not path.exists():
        raise ConfigError(
            f"{folder} holds no report.json, so its run is not finished; continue it with `python -m selfprune resume={folder}`"
        )
    return path


def _remedy(folder: Path) -> str:
    return f"restore it from a copy, or remove it and write it again with `python -m selfprune resume={folder}`"
