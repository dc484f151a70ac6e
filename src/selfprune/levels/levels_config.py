"""How a search gets a unit's weights at a level: `level_store` has the masks, `built_levels` what the pruner builds."""

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from selfprune.errors import ConfigError
from selfprune.pruners.base import Pruner
from selfprune.storage.path_fields import path_field


class LevelKind(str, Enum):
    """What a search takes for a unit at a level: see `LevelsConfig`. `of` decides AUTO, when a run is composed."""

    AUTO = "AUTO"
    MASKS = "MASKS"
    BUILT = "BUILT"

    def __str__(self) -> str:
        """For names of run folders."""
        return self.value

    @classmethod
    def of(cls, pruner: Pruner | type[Pruner]) -> "LevelKind":
        """What AUTO stands for with a pruner."""
        return cls.BUILT if pruner.builds_levels else cls.MASKS


@dataclass
class LevelsConfig:
    """How a search gets a unit's weights at a level.

    Attributes:
        kind: MASKS of the pruner's scores on the dense weights; weights BUILT by the pruner itself, with its update; or AUTO,
            which builds for pruners that are better searched so (`Pruner.builds_levels`).
        folder: where BUILT levels are kept, to be used again by runs with the same model, calibration text, pruner and grid,
            for which it has a folder each (one run at a time); by default `levels` in the run folder, until the run is finished.
        cache_gb: bound on what one run keeps there, in GB; the least recently used levels go first. Of a disk with less than
            that free it takes no more than leaves room for the pruned model. It bounds each folder in `folder`, not all of them
            together; they stay until they are removed by hand, which costs no more than building their levels anew.
        memory_gb: bound on the levels that are also kept in memory, in GB.
        statistics_gb: bound on the statistics that are kept in memory, in GB; the rest goes into the folder.
    """

    kind: LevelKind = LevelKind.AUTO
    folder: str = path_field()
    cache_gb: float = 50.0
    memory_gb: float = 2.0
    statistics_gb: float = 4.0

    def __post_init__(self) -> None:
        for name in ("cache_gb", "memory_gb", "statistics_gb"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"search.levels.{name} must be a number of GB, 0 or more, got {value}")

    def path(self, run_folder: Path) -> Path:
        """Where a run keeps BUILT levels."""
        return Path(self.folder).expanduser() if self.folder else run_folder / "levels"
