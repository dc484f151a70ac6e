"""Yields a unit's weights at any level of a search: ranks are kept, not weights per level.

A pruner that updates weights can so be searched by the masks of its own scores, without the update: the levels nest, and a level
costs no solve. `built_levels` has the update, at the price of a solve per level. The winner is pruned by the method itself.

Shape suffixes: O out, I in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from selfprune.allocation import Allocation, LevelGrid, Unit
from selfprune.errors import PruningError
from selfprune.models import LoadedModel
from selfprune.pruners.base import Pruner
from selfprune.pruners.statistics import Statistics
from selfprune.units import weight_view


class LevelStore:
    """The dense weights and, for every weight, the level at which it goes.

    Memory beyond the model: one copy of the units' weights and four bytes a weight. Nothing is written to disk.

    Example:
        >>> store = LevelStore(loaded, grid, rank_units(loaded, grid.units, pruner, statistics))
        >>> store.load(allocation)      # the model now is pruned so
        >>> store.restore()             # and dense again

    Attributes:
        grid: units and their levels.
        loaded: the model that is changed in place.
        allocation: what the model holds now.
    """

    def __init__(self, loaded: LoadedModel, grid: LevelGrid, ranks: dict[str, Tensor]) -> None:
        self.loaded = loaded
        self.grid = grid
        self.allocation: Allocation = {unit.name: 0 for unit in grid.units}
        self._ranks = ranks
        self._dense = {unit.name: weight_view(loaded.model, unit).clone() for unit in grid.units}

    @torch.no_grad()
    def load(self, allocation: Allocation) -> list[str]:
        """Brings the model to an allocation, touching only units whose level changed.

        Returns:
            the names of the units that changed.
        """
        changed = [unit for unit in self.grid.units if self.allocation[unit.name] != allocation[unit.name]]
        for unit in changed:
            weight_view(self.loaded.model, unit).copy_(self.weight_at(unit, allocation[unit.name]))
            # one by one, so that an error on the way leaves the truth behind
            self.allocation[unit.name] = allocation[unit.name]
        self.allocation = dict(allocation)
        return [unit.name for unit in changed]

    @torch.no_grad()
    def restore(self) -> None:
        """Makes the model dense again, whatever else was done to its units meanwhile."""
        for unit in self.grid.units:
            weight_view(self.loaded.model, unit).copy_(self._dense[unit.name])
        self.allocation = dict.fromkeys(self.allocation, 0)

    def weight_at(self, unit: Unit, level: int) -> Tensor:
        """A unit's weight at a level [O, I], whatever the model holds now. Not to be changed."""
        return torch.where(self._ranks[unit.name] >= level, self._dense[unit.name], 0)

    def change_along(self, gradient_OI: Tensor, unit: Unit, denser: int) -> float:
        """The sum of a gradient times the change of a unit's weight from what the model holds to a lower level, in fp32.

        Args:
            gradient_OI: of the score by the unit's weight.
            unit: the unit.
            denser: the lower level.
        """
        ranks_OI = self._ranks[unit.name]
        returns_OI = (ranks_OI >= denser) & (ranks_OI < self.allocation[unit.name])
        return float(torch.dot(gradient_OI[returns_OI].float(), self._dense[unit.name][returns_OI].float()))

    def dense(self, unit: str) -> Tensor:
        """The dense weight of a unit [O, I], whatever the model holds now. Not to be changed.

        Args:
            unit: its name.
        """
        return self._dense[unit]


@torch.no_grad()
def rank_units(
    loaded: LoadedModel, units: Sequence[Unit], pruner: Pruner, statistics: dict[str, Statistics]
) -> dict[str, Tensor]:
    """Unit name -> the order in which its weights go.

    Raises:
        PruningError: when a unit's scores are not finite; the message names the unit.
    """
    ranks = {}
    for unit in units:
        try:
            ranks[unit.name] = pruner.ranks(weight_view(loaded.model, unit), statistics[unit.name])
        except PruningError as error:
            raise PruningError(f"{unit.name}: {error}") from error
    return ranks
