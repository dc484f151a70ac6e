"""`python -m selfprune.latency`: measures, on this machine, what `budget.measure=LATENCY` counts.

python -m selfprune.latency output=table.json n_tokens=128
python -m selfprune.latency model=local model.path=FOLDER pattern=2:4 output=table.json
python -m selfprune budget=latency budget.latency_table=table.json budget.sparsity=0.3
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from selfprune.configs.entry import Command


def _load() -> Callable[[Sequence[str]], int]:
    from omegaconf import DictConfig

    from selfprune.configs.command_line import HydraCommand
    from selfprune.configs.config import to_config
    from selfprune.configs.sweep_records import SweepJob
    from selfprune.runs.latency_measurement import LatencyConfig, measure

    def work(composed: DictConfig, _: list[str], job: SweepJob | None) -> None:
        config = to_config(composed, LatencyConfig)
        if job and job.works_in(Path(config.output)):
            return
        measure(config)

    return HydraCommand("latency", LatencyConfig, work, _stopped)


def _stopped(_: KeyboardInterrupt) -> str:
    return "nothing was written"


main = Command(_load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
