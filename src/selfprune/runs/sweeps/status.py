"""How far a sweep is, by what its jobs recorded."""

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from selfprune.configs.plain_command import PlainParser, exit_code
from selfprune.configs.sweep_records import Job, JobState, Sweep, summary
from selfprune.errors import ConfigError

ARGUMENTS = "FOLDER [--retry-failed]"
MODULES = {"config": "selfprune", "prune": "selfprune.prune", "latency": "selfprune.latency"}
"""Config -> the command that overrides it."""


def tell_sweep(name: str, arguments: Sequence[str]) -> int:
    """Prints what is known of every job, and works on those that are not done, if that is asked for.

    Args:
        name: how the command is called.
        arguments: its command line.

    Returns:
        the exit code: 0 where no job failed, 1 where some did, 2 for a user's mistake; of the sweep, where it is given again.
    """
    found: list[Sweep] = []
    again: list[bool] = []

    def read() -> None:
        parser = PlainParser(name, ARGUMENTS, "How far a sweep is.")
        parser.add_argument("folder", type=Path)
        parser.add_argument("--retry-failed", action="store_true", help="give the command of the sweep again")
        parsed = parser.parse_args(arguments)
        found.append(Sweep.read(parsed.folder))
        again.append(parsed.retry_failed)
        if found[0].config_name not in MODULES:
            raise ConfigError(f"{parsed.folder} holds a sweep of {found[0].config_name}, which no command of this version has")

    if code := exit_code(read):
        return code
    (sweep,) = found
    if again[0]:
        return subprocess.run([sys.executable, "-m", MODULES[sweep.config_name], *sweep.command], check=False).returncode
    jobs = sweep.known()
    Console().print(_table(sweep, jobs))
    Console().print(f"{sweep.folder}: {summary(jobs)}", highlight=False, markup=False, soft_wrap=True)
    return int(any(job.state is JobState.FAILED for job in jobs))


def _table(sweep: Sweep, jobs: Sequence[Job]) -> Table:
    table = Table(title="Jobs of the sweep")
    for column in ("job", "state", "what is known"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        table.add_row(job.name(sweep.varied), *_told(job))
    return table


def _told(job: Job) -> tuple[str, str]:
    """The state of a job, and what else is known of it."""
    if job.state is not JobState.WORKING:
        return job.state.value.lower(), job.paragraph
    here = job.host == socket.gethostname()
    if here and not job.is_worked_on():
        return "killed", "the process ended without a word; give the command again"
    return "working", f"process {job.process}{'' if here else f' on {job.host}'}, {_last_sign(Path(job.folder))}"


def _last_sign(folder: Path) -> str:
    """When a job last wrote something; its heartbeat, where its process cannot be seen."""
    times = [path.stat().st_mtime for path in folder.glob("*") if path.is_file()]
    return f"last wrote {time.time() - max(times):,.0f} s ago" if times else "nothing written yet"
