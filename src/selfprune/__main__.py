"""`python -m selfprune`: composes the config and runs it."""

import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HYDRA_FULL_ERROR"] = "1"

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from selfprune.command_line import INTERRUPTED, guarded, set_up
from selfprune.conf_path import conf_folder
from selfprune.run import run_composed

COMMAND = "python -m selfprune"


def main() -> int:
    """Runs what the command line says.

    Returns:
        the exit code: 0, 2 for a user's mistake, 130 when interrupted. In a sweep, the other jobs go on after a mistake.

    Raises:
        SystemExit: with 130, when a job is interrupted.
    """
    set_up()
    codes: list[int] = []

    # Mistakes are told here, inside the job: Hydra would put a line of its own before them.
    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    def start(composed: DictConfig) -> None:
        config = HydraConfig.get()
        job = config.job.num if config.mode == RunMode.MULTIRUN else None
        codes.append(guarded(lambda: run_composed(composed, list(config.overrides.task), job), COMMAND, _interrupted))
        if codes[-1] == INTERRUPTED:
            # Whoever interrupts a sweep means all of it.
            raise SystemExit(INTERRUPTED)

    codes.append(guarded(start, COMMAND, _interrupted))
    return max(codes)


def _interrupted(interrupt: KeyboardInterrupt) -> str:
    folder = interrupt.args[0] if interrupt.args else "<run folder>"
    return f"interrupted; nothing that was recorded is lost, continue with `{COMMAND} resume={folder}`"


if __name__ == "__main__":
    sys.exit(main())
