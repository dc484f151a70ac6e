"""`python -m selfprune.prune`: prunes a model to one allocation, without a search, and from disk if it must.

python -m selfprune.prune pruner=sparsegpt budget.sparsity=0.5 output=FOLDER
python -m selfprune.prune model=local model.path=BIG model.placement=STREAM data=files data.calibration=A.txt output=FOLDER
"""

import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HYDRA_FULL_ERROR"] = "1"

import hydra
from omegaconf import DictConfig

from selfprune.command_line import guarded, set_up
from selfprune.conf_path import conf_folder
from selfprune.config import PruneConfig, to_config
from selfprune.one_shot import prune_once

COMMAND = "python -m selfprune.prune"


def main() -> int:
    """Prunes as the command line says.

    Returns:
        the exit code: 0, 2 for a user's mistake, 130 when interrupted.
    """
    set_up()
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="prune")
    def start(composed: DictConfig) -> None:
        codes.append(guarded(lambda: prune_once(to_config(composed, PruneConfig), composed), COMMAND, _interrupted))

    codes.append(guarded(start, COMMAND, _interrupted))
    return max(codes)


def _interrupted(_: KeyboardInterrupt) -> str:
    return "interrupted; the blocks that were pruned are kept, the same command goes on after them"


if __name__ == "__main__":
    sys.exit(main())
