"""What the commands share: Hydra composes, and a user's mistake becomes one paragraph and exit code 2."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import hydra
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers.utils.logging import disable_progress_bar

from selfprune.configs.choices import brought_along
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import register_schemas
from selfprune.configs.methods import why_missing
from selfprune.configs.path_options import repaired
from selfprune.configs.signals import STOPPED, Stopped, stoppable
from selfprune.errors import ConfigError, SelfpruneError, complain, refused_path
from selfprune.storage.held_folder import new_folder

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LAUNCHERS = {
    "submitit_slurm": "hydra-submitit-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "joblib": "hydra-joblib-launcher",
    "ray": "hydra-ray-launcher",
    "ray_aws": "hydra-ray-launcher",
    "rq": "hydra-rq-launcher",
}
"""Launcher of a sweep -> the package that brings it."""
Work = Callable[[DictConfig, list[str], Path | None], object]
"""Takes what Hydra composed, the overrides that it was composed from, and, in a sweep, the folder that this job may make."""


@dataclass(frozen=True)
class HydraCommand:
    """A command whose arguments are overrides of a config.

    Attributes:
        name: how it is called.
        config_name: the config that is overridden.
        options: its typed form.
        work: what it does, once, or once for every job of a sweep, where the other jobs go on after a mistake.
        stopped: what to tell of what was left behind when it is stopped.
    """

    name: str
    config_name: str
    options: type
    work: Work
    stopped: Stopped

    def __call__(self, arguments: Sequence[str]) -> int:
        """Does what the arguments say.

        Returns:
            the exit code: 0, 2 for a user's mistake, 130 when interrupted, 143 when terminated.
        """
        set_up()
        codes: list[int] = []

        def work_on(composed: DictConfig) -> None:
            config = HydraConfig.get()
            overrides = list(config.overrides.task)
            in_sweep = config.mode == RunMode.MULTIRUN
            if in_sweep and (more := brought_along(self.config_name, overrides)):  # of choices that are swept over
                overrides += more
                composed = hydra.compose(self.config_name, overrides=overrides)
            named = Path(config.sweep.dir) / str(config.job.num) if in_sweep else None
            self.work(composed, overrides, named)

        # Mistakes are told here, inside the job: Hydra would put a line of its own before them.
        @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=self.config_name)
        def start(composed: DictConfig) -> None:
            codes.append(guarded(lambda: work_on(composed), self.name, self.stopped))
            if codes[-1] in STOPPED:
                # Whoever stops a sweep means all of it.
                raise _JobStoppedError

        def compose_and_start() -> None:
            sys.argv[1:] = self._completed(arguments)
            start()

        with suppress(_JobStoppedError):
            codes.append(guarded(compose_and_start, self.name, self.stopped))
        return max(codes)

    def _completed(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with paths that Hydra can read, and with what their choices bring along.

        Raises:
            SelfpruneError: when there is a flag that is none.
            hydra.errors.HydraException: when an override or a choice cannot be read.
        """
        parsed = _read(arguments)
        in_sweep = parsed.multirun or "hydra.mode=MULTIRUN" in parsed.overrides
        overrides = [repaired(override, self.options, in_sweep) for override in parsed.overrides]
        place = [f"hydra.searchpath=[file://{Path(parsed.config_dir).resolve()}]"] if parsed.config_dir else []
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            overrides += brought_along(self.config_name, overrides, place)
        # Hydra reads overrides only where they stand together
        return [*overrides, *(argument for argument in arguments if argument not in parsed.overrides)]


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags and overrides of a command line, as Hydra reads them.

    Raises:
        ConfigError: when there is a flag that is none.
    """

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; options are given as NAME=VALUE, as in budget.sparsity=0.5")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(arguments)


class _JobStoppedError(BaseException):
    """Passes through Hydra, which keeps the errors of a job to itself, and was told already."""


def set_up() -> None:
    """Quiet libraries, our own log level, and the schemas that Hydra composes."""
    level = os.environ.get("SELFPRUNE_LOG", "WARNING").upper()
    if level not in LOG_LEVELS:
        sys.exit(complain(f"the environment variable SELFPRUNE_LOG must be one of {', '.join(LOG_LEVELS)}, got {level}"))
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    # cached, so that all jobs of a sweep have the one folder that was made when it began
    OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True, replace=True)
    register_schemas()


def guarded(work: Callable[[], object], command: str, stopped: Stopped) -> int:
    """Runs `work` and tells what went wrong, if it was a user's mistake, or what stopped it.

    Args:
        work: what the command does.
        command: how it is called, for the way to its options.
        stopped: what to tell of what was left behind when it is stopped.

    Returns:
        the exit code: 0, 2 for a user's mistake, 130 when interrupted, 143 when terminated.
    """

    def until_a_mistake() -> int:
        work()
        return 0

    try:
        return stoppable(until_a_mistake, stopped)
    except Exception as error:
        mistake = _mistake(error, command)
        if mistake is None:
            raise
        return complain(mistake)


def _mistake(error: Exception, command: str) -> str | None:
    """The paragraph for a user's mistake; None for any other error."""
    options = f"To see every option and its default: {command} --cfg job"
    if isinstance(error, SelfpruneError):
        return str(error)
    if isinstance(error, OSError) and (refusal := refused_path(error)):
        return refusal
    if isinstance(error, MissingConfigException):
        missing = error.missing_cfg_file or ""
        if reason := why_missing(missing):
            return reason
        group, _, launcher = missing.rpartition("/")
        if group == "hydra/launcher" and (package := LAUNCHERS.get(launcher)):
            return (
                f"hydra/launcher={launcher} comes with the package {package}, which is not installed here; install it with "
                f"pip install {package}, or leave hydra/launcher out to run one job after the other"
            )
    if isinstance(error, HydraException | OmegaConfBaseException):
        return f"{_plain(error)} {options}"
    # the one mistake that Hydra tells by an error of Python's own
    before, found, kind = str(error).partition("Config group override must be a string or a list. Got ")
    if isinstance(error, ValueError) and found and not before:
        return (
            f"a config group must be given a name, got {kind}; a group takes the name of a choice, as in pruner=wanda, is "
            f"left out by a tilde, as in '~controls.random', and an option takes a value, as in budget.sparsity=0.5. {options}"
        )
    return None


def _plain(error: Exception) -> str:
    """The sentences of a composition error."""
    said = str(error) if error.__cause__ is None else f"{error} ({error.__cause__})"
    lines = [
        line.strip() for line in said.splitlines() if line.strip() and not line.lstrip().startswith(("full_key:", "object_type="))
    ]
    return " ".join(lines)
