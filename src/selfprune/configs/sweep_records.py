"""Sweeps: the jobs of one, and what became of each, so that a sweep that is given again goes on where it stopped.

A sweep's folder is named after what it was asked for. In it lie `sweep.json`, the command and its jobs, and in `jobs/` one
record per job, written by whichever process works on it, on whichever machine: so any launcher will do, and none is asked.
"""

import hashlib
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Literal

from typing_extensions import NotRequired, TypedDict

from selfprune.errors import ConfigError
from selfprune.storage.lock import has_ended
from selfprune.storage.recorded_files import Text, read_json
from selfprune.storage.whole_files import disk_error, write_whole

FOLDER = "hydra.sweep.dir"
SWEEP, JOBS = "sweep.json", "jobs"
REMEDY = "give the sweep's command again with another hydra.sweep.dir"
MAX_NAME = 80
"""Characters of a job's folder before the digest; what tells jobs apart comes first."""


class JobState(str, Enum):
    """What is known of a job."""

    WAITING = "WAITING"
    WORKING = "WORKING"
    DONE = "DONE"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class _Sweep(TypedDict):
    """`sweep.json`."""

    config_name: Text
    command: list[Text]
    jobs: list[list[Text]]


class _Record(TypedDict):
    """A file of `jobs/`."""

    overrides: list[Text]
    state: Literal["WAITING", "WORKING", "DONE", "FAILED", "STOPPED"]
    folder: NotRequired[Text]
    paragraph: NotRequired[Text]
    host: NotRequired[Text]
    process: NotRequired[int]


@dataclass(frozen=True)
class Job:
    """A job of a sweep, and what is known of it.

    Attributes:
        overrides: its config.
        state: what was recorded last.
        folder: where its results lie; empty before it began, or where the command names no folder.
        paragraph: why it failed.
        host: where it was worked on last.
        process: by which process there.
    """

    overrides: list[str]
    state: JobState = JobState.WAITING
    folder: str = ""
    paragraph: str = ""
    host: str = ""
    process: int = 0

    def is_worked_on(self) -> bool:
        """Whether a process that can be seen from here is at work on it; of other hosts the lock of the folder decides."""
        is_anothers = self.host == socket.gethostname() and self.process != os.getpid()
        return self.state is JobState.WORKING and is_anothers and not has_ended(self.host, self.process)

    def name(self, varied: Sequence[str]) -> str:
        """What tells it from the other jobs.

        Args:
            varied: the keys in which jobs differ.
        """
        values = dict(override.split("=", 1) for override in self.overrides if "=" in override)
        return ",".join(f"{key}={values[key]}" for key in varied if key in values) or "job"


@dataclass
class Sweep:
    """A sweep in its folder.

    Attributes:
        folder: where it keeps its records.
        config_name: the config that its command overrides.
        command: the arguments that it was begun with.
        jobs: the overrides of each; empty where a sweeper decides on them as it goes.
    """

    folder: Path
    config_name: str
    command: list[str]
    jobs: list[list[str]]

    def begin(self) -> None:
        """Records it, unless it was begun before.

        Raises:
            ConfigError: when the folder belongs to another sweep.
            SelfpruneError: when it cannot be written.
        """
        if (self.folder / SWEEP).exists():
            begun = Sweep.read(self.folder)
            if {frozenset(job) for job in begun.jobs} != {frozenset(job) for job in self.jobs}:
                raise ConfigError(
                    f"the folder {self.folder} belongs to another sweep, which was begun as {' '.join(begun.command)}; give that "
                    f"command to continue it, or choose another {FOLDER}"
                )
            return
        try:
            (self.folder / JOBS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(self.folder, error, f"choose another {FOLDER}") from error
        held = {"config_name": self.config_name, "command": self.command, "jobs": self.jobs}
        write_whole(self.folder / SWEEP, json.dumps(held, indent=1) + "\n", REMEDY)

    @classmethod
    def read(cls, folder: Path) -> "Sweep":
        """A sweep that was begun.

        Raises:
            ConfigError: when the folder is none of a sweep.
        """
        if not (folder / SWEEP).is_file():
            raise ConfigError(f"{folder} is no folder of a sweep: it has no {SWEEP}; sweeps lie in runs/sweep_...")
        read = read_json(folder / SWEEP, _Sweep, REMEDY)
        return cls(folder, read["config_name"], read["command"], read["jobs"])

    @property
    def varied(self) -> list[str]:
        """The keys in which its jobs differ."""
        values: dict[str, set[str]] = {}
        for overrides in self.jobs:
            for key, _, value in (override.partition("=") for override in overrides):
                values.setdefault(key, set()).add(value)
        return [key for key, found in values.items() if len(found) > 1]

    def known(self) -> list[Job]:
        """What is known of every job."""
        if self.jobs:
            return [self.of(overrides) for overrides in self.jobs]
        return [_read(path) for path in sorted((self.folder / JOBS).glob("*.json"))]

    def of(self, overrides: Sequence[str]) -> Job:
        """What is known of one job."""
        path = self._path(overrides)
        return _read(path) if path.exists() else Job(list(overrides))

    def record(self, job: Job) -> None:
        """Writes down what became of a job, by this process."""
        held = asdict(replace(job, host=socket.gethostname(), process=os.getpid()))
        (self.folder / JOBS).mkdir(parents=True, exist_ok=True)
        write_whole(self._path(job.overrides), json.dumps(held) + "\n", REMEDY)

    def _path(self, overrides: Sequence[str]) -> Path:
        return self.folder / JOBS / f"{digest(sorted(overrides))}.json"


@dataclass
class SweepJob:
    """A job as the process sees it that works on it.

    Attributes:
        sweep: whose it is.
        job: what is recorded of it.
    """

    sweep: Sweep
    job: Job = field(repr=False)

    def own_folder(self, content: str) -> Path:
        """The folder for its results, which every process finds that composes the same config.

        Args:
            content: the config.
        """
        readable = re.sub(r"[^\w.=,+-]+", "_", self.job.name(self.sweep.varied))[:MAX_NAME]
        return self.sweep.folder / f"{readable}-{digest(content)}"

    def works_in(self, folder: Path) -> bool:
        """Records where its results lie; whether they lie there already, since it was done before."""
        if self.job.state is JobState.DONE and self.job.folder == str(folder) and folder.exists():
            return True
        self.job = replace(self.job, folder=str(folder), state=JobState.WORKING, paragraph="")
        self.sweep.record(self.job)
        return False

    def ended(self, state: JobState, paragraph: str = "") -> None:
        """Records its end."""
        self.job = replace(self.job, state=state, paragraph=paragraph)
        self.sweep.record(self.job)


def summary(jobs: Sequence[Job]) -> str:
    """How many jobs are in which state."""
    counts = Counter(job.state for job in jobs)
    return f"{len(jobs)} jobs: " + ", ".join(f"{counts[state]} {state.value.lower()}" for state in JobState if counts[state])


def _read(path: Path) -> Job:
    read = read_json(path, _Record, "remove it, and the job is worked on again")
    return Job(**{**read, "state": JobState(read["state"])})  # type: ignore[arg-type]


def digest(content: str | Sequence[str]) -> str:
    """A short name of a text, or of several."""
    text = content if isinstance(content, str) else "\n".join(content)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
