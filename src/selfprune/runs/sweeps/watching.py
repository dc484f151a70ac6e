"""Where a run stands, from what it has written so far; nothing of it is touched."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from selfprune.configs.plain_command import PlainParser, exit_code
from selfprune.errors import ConfigError
from selfprune.reports.comparisons.finished_runs import recorded_config
from selfprune.storage.recorded_files import parsed_lines

ARGUMENTS = "RUN [--once]"
SECONDS = 2.0
"""Between two looks."""
SILENT = 600.0
"""Seconds without a written line from which a run is said to be silent: a line takes no longer but on the largest models."""


@dataclass
class Progress:
    """How far a search is.

    Attributes:
        n_candidates: that ended.
        n_tokens: spent by them.
        best: the incumbent's score, and the windows that it rests on; None before there is one.
        proposer: of the incumbent.
    """

    n_candidates: int = 0
    n_tokens: int = 0
    best: tuple[float, int] | None = None
    proposer: str = ""


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        stage: what it does.
        max_tokens: of every search.
        searches: name -> how far it is, in the order in which they run.
        seconds_silent: since it wrote something.
    """

    stage: str
    max_tokens: int
    searches: dict[str, Progress] = field(default_factory=dict)
    seconds_silent: float = 0.0

    @property
    def is_finished(self) -> bool:
        """Whether there is a report."""
        return self.stage == "finished"


def standing(folder: Path) -> Standing:
    """Reads where a run stands.

    Args:
        folder: of the run.

    Raises:
        ConfigError: when it is none of a run.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is no run folder: it has no config.yaml; give the folder of a run that was begun")
    config = recorded_config(folder)
    searches = {name: Progress() for name in ("main", *(config.get("controls") or {}))}
    for line in _whole_lines(folder / "archive.jsonl"):
        found = searches.setdefault(line["search"], Progress())
        found.n_candidates += 1
        found.n_tokens += line["n_tokens"]
        if line.get("gain") is not None:
            found.best, found.proposer = (line["score"], line["n_windows"]), line["proposer"]
    begun = [name for name, found in searches.items() if found.n_candidates]
    if (folder / "report.json").is_file():
        stage = "finished"
    elif not begun:
        stage = "calibrating"
    else:
        stage = f"searching: {begun[-1]}, or what follows it"
    times = [path.stat().st_mtime for path in folder.iterdir() if path.is_file()]
    return Standing(stage, config["search"]["max_tokens"], searches, time.time() - max(times))


def watch(name: str, arguments: Sequence[str], wait: Callable[[float], object] = time.sleep) -> int:
    """Shows where a run stands until it is finished; once, where the output is no terminal.

    Args:
        name: how the command is called.
        arguments: its command line.
        wait: between two looks.

    Returns:
        the exit code: 0, or 2 for a user's mistake.
    """

    def look() -> None:
        parser = PlainParser(name, ARGUMENTS, "Where a run stands, until it is finished.")
        parser.add_argument("folder", type=Path)
        parser.add_argument("--once", action="store_true", help="look once")
        parsed = parser.parse_args(arguments)
        console, now = Console(), standing(parsed.folder)
        if parsed.once or not console.is_terminal:
            console.print(_shown(parsed.folder, now))
            return
        with Live(_shown(parsed.folder, now), console=console, auto_refresh=False) as live:
            while not now.is_finished:
                wait(SECONDS)
                now = standing(parsed.folder)
                live.update(_shown(parsed.folder, now), refresh=True)

    return exit_code(look)


def _shown(folder: Path, now: Standing) -> Group:
    table = Table()
    for column in ("search", "candidates", "tokens", "of them", "best score", "windows", "found by"):
        table.add_column(column, justify="left" if column in ("search", "found by") else "right", no_wrap=True)
    for name, found in now.searches.items():
        best, windows = (f"{found.best[0]:.5g}", str(found.best[1])) if found.best else ("", "")
        share = f"{found.n_tokens / now.max_tokens:.0%}"
        table.add_row(name, str(found.n_candidates), f"{found.n_tokens:,}", share, best, windows, found.proposer)
    silent = (
        f"; nothing was written for {now.seconds_silent:,.0f} s" if now.seconds_silent > SILENT and not now.is_finished else ""
    )
    last = f"; look at {folder / 'report.html'}" if now.is_finished else ""
    return Group(table, Text(f"{folder}: {now.stage}{silent}{last}", overflow="fold"))


def _whole_lines(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of a file that is being written; the last one may be cut short."""
    content = path.read_bytes() if path.exists() else b""
    return parsed_lines(content[: content.rfind(b"\n") + 1], path, "restore the file from a copy")
