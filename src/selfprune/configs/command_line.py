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
from hydra.types import RunMode
from omegaconf import DictConfig

from selfprune.configs.choices import brought_along
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import register_schemas
from selfprune.configs.mistakes.command_mistakes import mistake_of
from selfprune.configs.mistakes.override_mistakes import CommandLine
from selfprune.configs.path_options import repaired
from selfprune.configs.signals import STOPPED, Stopped, stoppable
from selfprune.configs.sweep_records import Sweep, SweepJob
from selfprune.configs.sweeps import Explain, begin_sweep, launched, recorded, sweep_job
from selfprune.errors import ConfigError, complain

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
Work = Callable[[DictConfig, list[str], SweepJob | None], object]
"""Takes what Hydra composed, the overrides that it was composed from, and, in a sweep, which job of it this is."""


@dataclass(frozen=True)
class HydraCommand:
    """A command whose arguments are overrides of a config.

    Attributes:
        config_name: the config that is overridden.
        options: its typed form.
        work: what it does, once, or once for every job of a sweep, where the other jobs go on after a mistake.
        stopped: what to tell of what was left behind when it is stopped.
    """

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
        told: set[str] = set()
        codes: list[int] = []
        explain = self._explaining(arguments)

        def work_on(composed: DictConfig) -> None:
            config = HydraConfig.get()
            overrides = list(config.overrides.task)
            job = sweep_job(config) if config.mode == RunMode.MULTIRUN else None
            if job and (more := brought_along(self.config_name, overrides)):  # of choices that are swept over
                overrides += more
                composed = hydra.compose(self.config_name, overrides=overrides)
            if job:
                recorded(job, explain, lambda: self.work(composed, overrides, job))
            else:
                self.work(composed, overrides, None)

        # Mistakes are told here, inside the job: Hydra would put a line of its own before them.
        @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=self.config_name)
        def start(composed: DictConfig) -> None:
            codes.append(guarded(lambda: work_on(composed), explain, self.stopped, told))
            if codes[-1] in STOPPED:
                # Whoever stops a sweep means all of it.
                raise _JobStoppedError

        begun: list[Sweep] = []

        def compose_and_start() -> None:
            sys.argv[1:], sweep = self._completed(arguments)
            if sweep is None:
                start()
            else:
                begun.append(sweep)
                with launched(sweep, told):
                    start()

        def outside_a_job(interrupt: KeyboardInterrupt) -> str:
            if not begun:
                return self.stopped(interrupt)
            return f"what the jobs of {begun[0].folder} recorded is kept, and the same command goes on after it"

        with suppress(_JobStoppedError):
            codes.append(guarded(compose_and_start, explain, outside_a_job, told))
        return max(codes)

    def _explaining(self, arguments: Sequence[str]) -> Explain:
        return lambda error: mistake_of(error, lambda: self._line(_read(arguments)))

    def _line(self, parsed: argparse.Namespace) -> CommandLine:
        read = [repaired(override, self.options, _is_sweep(parsed)) for override in parsed.overrides]
        place = [f"hydra.searchpath=[file://{Path(parsed.config_dir).resolve()}]"] if parsed.config_dir else []
        return CommandLine(self.config_name, parsed.overrides, read, _is_sweep(parsed), place)

    def _completed(self, arguments: Sequence[str]) -> tuple[list[str], Sweep | None]:
        """The arguments with paths that Hydra can read, and with what their choices bring along; and the sweep that they begin.

        Raises:
            SelfpruneError: when a flag is none, a group is left out that every config needs, or a sweep cannot begin.
            hydra.errors.HydraException: when an override or a choice cannot be read.
        """
        parsed = _read(arguments)
        line = self._line(parsed)
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            line.refuse()
            overrides = [*line.read, *brought_along(self.config_name, line.read, line.more)]
            # Hydra reads overrides only where they stand together
            flags = [argument for argument in arguments if argument not in parsed.overrides]
            is_shown = parsed.cfg or parsed.info or parsed.shell_completion
            if not _is_sweep(parsed) or is_shown:
                return [*overrides, *flags], None
            sweep = begin_sweep(self.config_name, overrides, flags, line.more)
        return sweep.command, sweep


def _is_sweep(parsed: argparse.Namespace) -> bool:
    return parsed.multirun or "hydra.mode=MULTIRUN" in parsed.overrides


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
    """Our own log level, a quiet accelerate, and the schemas that Hydra composes."""
    level = os.environ.get("SELFPRUNE_LOG", "WARNING").upper()
    if level not in LOG_LEVELS:
        sys.exit(complain(f"the environment variable SELFPRUNE_LOG must be one of {', '.join(LOG_LEVELS)}, got {level}"))
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    register_schemas()


def guarded(work: Callable[[], object], explain: Explain, stopped: Stopped, told: set[str] | None = None) -> int:
    """Runs `work` and tells what went wrong, if it was a user's mistake, or what stopped it.

    Args:
        work: what the command does.
        explain: gives the paragraph for an error that was a user's mistake, and None for any other.
        stopped: what to tell of what was left behind when it is stopped.
        told: paragraphs that are not told again, as by jobs of one sweep; grows in place.

    Returns:
        the exit code: 0, 2 for a user's mistake, 130 when interrupted, 143 when terminated.
    """

    def until_a_mistake() -> int:
        work()
        return 0

    told = set() if told is None else told
    try:
        return stoppable(until_a_mistake, stopped)
    except Exception as error:
        mistake = explain(error)
        if mistake is None:
            raise
        if mistake in told:
            return 2
        told.add(mistake)
        return complain(mistake)
