"""The finished runs in some folders, and what tells their configs apart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from selfprune.allocations.report_file import read_report
from selfprune.errors import ConfigError
from selfprune.storage.recorded_files import read_text

NOT_A_GROUP = ("seed", "resume", "run_folder")
"""Keys of a config that no group differs by."""
METHODS = "methods."
"""What the config records before the class of every method."""


@dataclass(frozen=True)
class FinishedRun:
    """What is read of a run.

    Attributes:
        folder: where it lies.
        config: every value of its config, by its path of names.
        report: its report.
        age: its time of writing, later ones are greater.
    """

    folder: Path
    config: dict[str, str]
    report: dict[str, Any]
    age: float

    @property
    def seed(self) -> str:
        """Its seed."""
        return self.config.get("seed", "")

    @property
    def split(self) -> str:
        """What it was measured on."""
        return str(self.report.get("splits", {}).get("report", ""))


def find_runs(folders: Iterable[Path]) -> tuple[list[FinishedRun], list[Path]]:
    """The finished runs that folders are or hold, of every config and seed the newest; and the folders of unfinished ones.

    Args:
        folders: of runs, of sweeps, or of many of them.

    Raises:
        ConfigError: when a folder is missing, holds no run, or a report cannot be read.
    """
    found: dict[tuple[tuple[str, str], ...], FinishedRun] = {}
    unfinished: list[Path] = []
    for folder in folders:
        begun = sorted(path.parent for path in folder.rglob("config.yaml"))
        if not begun:
            what = "holds no run" if folder.is_dir() else "is no folder"
            raise ConfigError(f"{folder} {what}; give the folders of runs or of sweeps, such as runs/sweep_1a2b3c4d")
        for path in begun:
            if not (path / "report.json").is_file():
                unfinished.append(path)
                continue
            config = flat(recorded_config(path))
            run = FinishedRun(path, config, read_report(path), (path / "report.json").stat().st_mtime)
            identity = tuple(sorted((key, value) for key, value in config.items() if key not in NOT_A_GROUP[1:]))
            if identity not in found or found[identity].age < run.age:
                found[identity] = run
    if not found:
        raise ConfigError(
            f"none of the {len(unfinished)} runs is finished; continue them with `python -m selfprune resume=RUN`, or give the "
            "command of their sweep again"
        )
    return list(found.values()), unfinished


def differing_keys(runs: Sequence[FinishedRun]) -> list[str]:
    """The keys by which groups differ, methods first.

    What a method brings along tells nothing beside it: an option, or a method within a method, counts where runs of that very
    method differ by it. Yardsticks and controls have rows of their own, and count where runs that have one have it otherwise.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NOT_A_GROUP)
    different = [key for key in keys if n_values([run for run in runs if key in run.config or not _is_beside(key)], key) > 1]
    methods = [key for key in different if key.startswith(METHODS)]

    def is_told_by_its_method(key: str) -> bool:
        names = key.removeprefix(METHODS).split(".")
        above = [f"{METHODS}{'.'.join(names[:n])}" for n in range(1, len(names))]
        return any(
            len({(run.config.get(method), run.config.get(key)) for run in runs}) == n_values(runs, method)
            for method in above
            if method in methods
        )

    shown = [key for key in different if not is_told_by_its_method(key)]
    return sorted(shown, key=lambda key: not key.startswith(METHODS))


def _is_beside(key: str) -> bool:
    """Whether a key is of a yardstick or of a control."""
    return key.removeprefix(METHODS).startswith(("yardsticks.", "controls."))


def n_values(runs: Sequence[FinishedRun], key: str) -> int:
    """How many values a key of the config has."""
    return len({run.config.get(key) for run in runs})


def recorded_config(folder: Path) -> dict[str, Any]:
    """The config that a run was begun with.

    Args:
        folder: of the run.

    Raises:
        ConfigError: when it cannot be read.
    """
    path, remedy = folder / "config.yaml", "restore it from a copy, or leave the run out"
    try:
        config = yaml.safe_load(read_text(path, remedy))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path} should hold the config of a run, but is no YAML ({str(error).splitlines()[0]}); {remedy}"
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} should hold the config of a run, but holds no options; {remedy}")
    return config


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Every value of a config under its path of names, as text."""
    found: dict[str, str] = {}
    for key, value in config.items():
        inner = flat(value) if isinstance(value, dict) and value else {"": str(value)}
        found |= {f"{key}.{name}" if name else str(key): text for name, text in inner.items()}
    return found
