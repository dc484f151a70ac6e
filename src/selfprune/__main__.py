"""`python -m selfprune`: composes the config, runs, and turns a user's mistake into one paragraph and exit code 2."""

import logging
import os
import sys
import textwrap

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HYDRA_FULL_ERROR"] = "1"

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from selfprune.conf_path import conf_folder
from selfprune.config import register_schemas
from selfprune.errors import SelfpruneError


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def start(composed: DictConfig) -> None:
    """Runs one composed config."""
    from selfprune.run import run_composed

    hydra_config = HydraConfig.get()
    job = hydra_config.job.num if hydra_config.mode == hydra.types.RunMode.MULTIRUN else None
    run_composed(composed, list(hydra_config.overrides.task), job)


def main() -> int:
    """The exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    logging.basicConfig(level=os.environ.get("SELFPRUNE_LOG", "WARNING").upper(), format="%(levelname)s %(name)s: %(message)s")
    register_schemas()
    try:
        start()
    except SelfpruneError as error:
        return _complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _complain(_plain(error))
    except KeyboardInterrupt:
        return _complain(
            "interrupted; nothing that was recorded is lost, continue with `python -m selfprune resume=<run folder>`", 130
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
