"""From a command line to a sweep that is begun or taken up again, under whichever launcher; and what each job leaves behind."""

import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from selfprune.configs.sweep_records import FOLDER, JobState, Sweep, SweepJob, digest, summary
from selfprune.errors import ConfigError, InUseError, SelfpruneError

Explain = Callable[[Exception], str | None]
"""Gives the paragraph for an error that was a user's mistake, and None for any other."""


def begin_sweep(config_name: str, overrides: Sequence[str], flags: Sequence[str], more: Sequence[str] = ()) -> Sweep:
    """Begins the sweep of a command line, or takes it up again, in the folder that it names or else in one named after its jobs.

    Args:
        config_name: the config that is overridden; Hydra must be initialised.
        overrides: of the command line.
        flags: its other arguments.
        more: overrides of Hydra's own options that the choices need to be found.

    Raises:
        ConfigError: when the launcher is not installed or not reachable, or the folder belongs to another sweep.
        SelfpruneError: when nothing can be written there.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    once = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
    own = hydra.compose(config_name, overrides=[*more, *once], return_hydra_config=True).hydra
    check_launcher(own.runtime.choices["hydra/launcher"], own.launcher._target_)
    of_jobs = [override for override in parsed if not override.key_or_group.startswith(("hydra.", "hydra/"))]
    jobs = []
    if own.sweeper._target_.endswith("BasicSweeper"):
        params = [f"{key}={value}" for key, value in (own.sweeper.get("params") or {}).items()]
        jobs = BasicSweeper.split_arguments([*OverridesParser.create().parse_overrides(params), *of_jobs], None)[0]
    command = [*overrides]
    if not any(override.key_or_group == FOLDER for override in parsed):
        asked = sorted("\n".join(sorted(job)) for job in jobs) or sorted(override.input_line or "" for override in of_jobs)
        own.sweep.dir = f"{own.sweep.dir}_{digest([config_name, *asked])}"
        command.append(f"{FOLDER}={own.sweep.dir}")
    sweep = Sweep(Path(own.sweep.dir), config_name, [*command, *flags], jobs)
    sweep.begin()
    return sweep


def sweep_job(config: HydraConf) -> SweepJob:
    """The job that this process works on.

    Args:
        config: Hydra's own, of the job.
    """
    sweep = Sweep.read(Path(config.sweep.dir))
    # as the sweep was planned, before what is interpolated has a value
    overrides: list[str] = OmegaConf.to_container(OmegaConf.create(config.overrides.task), resolve=False)  # type: ignore[assignment]
    return SweepJob(sweep, sweep.of(overrides))


def recorded(job: SweepJob, explain: Explain, work: Callable[[], object]) -> None:
    """Works on a job and records its end, however it comes.

    A job that another process works on is left to that one. What is no user's mistake is told with its traceback, and the sweep
    goes on all the same.

    Args:
        job: which.
        explain: gives the paragraph for a user's mistake, and None for any other error.
        work: does it.

    Raises:
        Exception: a user's mistake.
        KeyboardInterrupt: when it was stopped.
    """
    name = job.job.name(job.sweep.varied)
    try:
        if job.job.is_worked_on():
            raise InUseError(f"process {job.job.process} works on it")
        work()
        job.ended(JobState.DONE)
    except InUseError as error:
        sys.stderr.write(f"{name} is left alone: {error}\n")
    except KeyboardInterrupt:
        job.ended(JobState.STOPPED)
        raise
    except Exception as error:
        paragraph = explain(error)
        job.ended(JobState.FAILED, paragraph or f"{type(error).__name__}: {error}")
        if paragraph is not None:
            raise
        traceback.print_exc()


@contextmanager
def launched(sweep: Sweep, told: set[str]) -> Iterator[None]:
    """While open, a launcher works on a sweep; then it is told what became of the jobs.

    Args:
        sweep: which.
        told: paragraphs that were told already.

    Raises:
        SelfpruneError: when a job failed elsewhere, or the launcher ended before all jobs did.
    """
    ended_early = ""
    try:
        yield
    except SelfpruneError:
        raise
    except Exception as error:
        # what launchers raise when a worker was killed, or their cluster cannot be reached, is of a kind of their own
        ended_early = f"the launcher ended early ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
    jobs = sweep.known()
    failed = [job for job in jobs if job.state is JobState.FAILED]
    of_others = [f"{job.name(sweep.varied)}: {job.paragraph}" for job in failed if job.paragraph not in told]
    reasons = [*([ended_early] if ended_early else []), *of_others]
    is_whole = all(job.state is JobState.DONE for job in jobs)
    again = f"; the same command, or `selfprune sweep {sweep.folder} --retry-failed`, works on those that are not done"
    said = f"{sweep.folder}: {summary(jobs)}{'' if is_whole else again}"
    if reasons:
        raise SelfpruneError("; ".join([*reasons, said]))
    sys.stderr.write(f"{said}\n")


def check_launcher(name: str, target: str) -> None:
    """Refuses a launcher that cannot work here.

    Args:
        name: of the choice `hydra/launcher`.
        target: its class.

    Raises:
        ConfigError: when Slurm's commands are missing. That of a package that is not installed has no config to choose.
    """
    if target.endswith(".SlurmLauncher") and not (shutil.which("sbatch") and shutil.which("srun")):
        raise ConfigError(
            f"hydra/launcher={name} hands jobs to Slurm, but its commands sbatch and srun are not on this machine; give the "
            "command on a login node of the cluster, or choose hydra/launcher=submitit_local or joblib for this machine"
        )
