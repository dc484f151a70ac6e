"""The winner of an earlier run, shifted to the budget of this one.

All sparsities are shifted by one constant (`project`), so that the winner at a lower sparsity is a start for a higher one.

Limits: both runs must prune the same units of the same model, or of one with units of the same names and sizes.
"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from selfprune.allocations.winners import fits, read_winner
from selfprune.errors import ConfigError
from selfprune.proposers.base import ClosedForm, SearchSpace
from selfprune.storage.path_fields import path_field


@dataclass
class Stored(ClosedForm):
    """One allocation, read when the config is made, so that a wrong folder is told before a model is loaded.

    Attributes:
        run_folder: of the earlier run, which must be finished.
    """

    run_folder: str = path_field(MISSING)

    def __post_init__(self) -> None:
        self._winner = read_winner(
            Path(self.run_folder).expanduser(), "run_folder of the stored proposer must be the folder of a finished run"
        )

    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """The sparsities of the winner at its own budget.

        Raises:
            ConfigError: when the units of the run are others.
        """
        if not fits(self._winner, space.grid.units):
            raise ConfigError(
                f"the winner of {self.run_folder} belongs to another model: it must name the {len(space.grid.units)} units of "
                f"this one, got {len(self._winner)} units, of other names or sizes; give a run of this model with the same units"
            )
        return space.grid.sparsities(self._winner)
