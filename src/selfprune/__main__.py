"""`python -m selfprune`: composes the config, runs, and turns a user's mistake into one paragraph and exit code 2."""

import logging
import os
import sys
import textwrap
from collections.abc import Callable

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HYDRA_FULL_ERROR"] = "1"

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from transformers.utils.logging import disable_progress_bar

from selfprune.conf_path import conf_folder
from selfprune.config import register_schemas
from selfprune.errors import SelfpruneError
from selfprune.run import run_composed


def main() -> int:
    """Runs what the command line says.

    Returns:
        the exit code: 0, 2 for a user's mistake, 130 when interrupted. In a sweep, the other jobs go on after a mistake.
    """
    logging.basicConfig(level=os.environ.get("SELFPRUNE_LOG", "WARNING").upper(), format="%(levelname)s %(name)s: %(message)s")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    register_schemas()
    codes: list[int] = []

    # Mistakes are told here, inside the job: Hydra would put a line of its own before them.
    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    def start(composed: DictConfig) -> None:
        config = HydraConfig.get()
        job = config.job.num if config.mode == RunMode.MULTIRUN else None
        codes.append(_guarded(lambda: run_composed(composed, list(config.overrides.task), job)))

    codes.append(_guarded(start))
    return max(codes)


def _guarded(work: Callable[[], object]) -> int:
    """Runs `work` and tells what went wrong, if it was a user's mistake."""
    try:
        work()
    except SelfpruneError as error:
        return _complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _complain(_plain(error))
    except KeyboardInterrupt as interrupt:
        folder = interrupt.args[0] if interrupt.args else "<run folder>"
        return _complain(
            f"interrupted; nothing that was recorded is lost, continue with `python -m selfprune resume={folder}`", 130
        )
    return 0


def _plain(error: Exception) -> str:
    """The sentences of a composition error, with the way to see what is allowed."""
    said = str(error) if error.__cause__ is None else f"{error} ({error.__cause__})"
    lines = [
        line.strip() for line in said.splitlines() if line.strip() and not line.lstrip().startswith(("full_key:", "object_type="))
    ]
    return " ".join(lines) + " To see every option and its default: python -m selfprune --cfg job"


def _complain(message: str, code: int = 2) -> int:
    sys.stderr.write(textwrap.fill(f"selfprune: {message}", width=100, break_long_words=False, break_on_hyphens=False) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
