"""`python -m selfprune.prune`: prunes a model to one allocation, without a search, and from disk if it must.

python -m selfprune.prune pruner=sparsegpt budget.sparsity=0.5 output=FOLDER
python -m selfprune.prune model=local model.path=BIG model.placement=STREAM data=files data.calibration=A.txt output=FOLDER
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from selfprune.configs.entry import Command


def _load() -> Callable[[Sequence[str]], int]:
    from omegaconf import DictConfig

    from selfprune.configs.command_line import HydraCommand
    from selfprune.configs.config import PruneConfig, to_config
    from selfprune.configs.sweep_records import SweepJob
    from selfprune.runs.showing.display import importing

    def work(composed: DictConfig, _: list[str], job: SweepJob | None) -> None:
        config = to_config(composed, PruneConfig)
        if job and job.works_in(Path(config.output)):
            return
        with importing("nothing was begun"):
            from selfprune.runs.prune_once import prune_once
        prune_once(config, composed)

    return HydraCommand("prune", PruneConfig, work, _stopped)


def _stopped(_: KeyboardInterrupt) -> str:
    return "the blocks that were pruned are kept, the same command goes on after them"


main = Command(_load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
