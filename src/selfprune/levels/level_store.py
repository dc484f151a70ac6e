"""Yields a unit's weights at any level of a search: of every weight the level at which it goes is kept, not weights per level.

A pruner that updates weights can so be searched by the masks of its own scores, without the update: the levels nest, and a level
costs no solve. `built_levels` has the update, at the price of a solve per level. The winner is pruned by the method itself.

Shape suffixes: O out, I in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation, Unit
from selfprune.errors import naming
from selfprune.models.loading import LoadedModel
from selfprune.models.units import weight_view
from selfprune.pruners.base import Pruner
from selfprune.statistics.base import Statistics


class LevelStore:
    """The dense weights and, for every weight, the level at which it goes.

    Memory beyond the model: one copy of the units' weights, and one or two bytes a weight. Nothing is written to disk.

    Args:
        loaded: the dense model.
        grid: units and their levels.
        pruner: in whose order the weights go.

    Example:
        >>> store = LevelStore(loaded, grid, pruner)
        >>> for units, statistics in calibrate_blocks(loaded, windows_NT, pruner, batch_size):
        ...     store.take(units, statistics)
        >>> store.load(allocation)      # the model now is pruned so
        >>> store.restore()             # and dense again

    Attributes:
        grid: units and their levels.
        loaded: the model that is changed in place.
        allocation: what the model holds now.
    """

    def __init__(self, loaded: LoadedModel, grid: LevelGrid, pruner: Pruner) -> None:
        self.loaded = loaded
        self.grid = grid
        self.allocation: Allocation = {unit.name: 0 for unit in grid.units}
        self._pruner = pruner
        self._dense: dict[str, Tensor] = {}
        self._first_levels: dict[str, Tensor] = {}

    def take(self, units: Sequence[Unit], statistics: dict[str, Statistics]) -> None:
        """Learns what the levels of units are made of, once for each, while the model is dense.

        Args:
            units: some of the grid's.
            statistics: unit name -> complete statistics of the dense model; what is left of them may be something else.

        Raises:
            PruningError: when a unit's scores are not finite; the message names the unit.
        """
        self._copy_dense(units)
        self._first_levels |= first_levels(self.loaded, self.grid, units, self._pruner, statistics)

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
        """A unit's weight at a level [O, I], whatever the model holds now. Not to be changed.

        Raises:
            AllocationError: when it is no level of the grid.
        """
        return torch.where(self._first_levels[unit.name] > self._number(unit, level), self._dense[unit.name], 0)

    def change_along(self, gradient_OI: Tensor, unit: Unit, denser: int) -> float:
        """The sum of a gradient times the change of a unit's weight from what the model holds to a lower level, in fp32.

        Args:
            gradient_OI: of the score by the unit's weight.
            unit: the unit.
            denser: the lower level.
        """
        first_OI = self._first_levels[unit.name]
        returns_OI = (first_OI > self._number(unit, denser)) & (first_OI <= self._number(unit, self.allocation[unit.name]))
        return float(torch.dot(gradient_OI[returns_OI].float(), self._dense[unit.name][returns_OI].float()))

    def dense(self, unit: str) -> Tensor:
        """The dense weight of a unit [O, I], whatever the model holds now. Not to be changed.

        Args:
            unit: its name.
        """
        return self._dense[unit]

    def _copy_dense(self, units: Sequence[Unit]) -> None:
        self._dense |= {unit.name: weight_view(self.loaded.model, unit).clone() for unit in units}

    def _number(self, unit: Unit, level: int) -> int:
        """Steps from dense to a level."""
        levels = self.grid.levels[unit.name]
        if level not in levels:
            raise levels.missing(unit.name, level)
        return levels.index(level)


@torch.no_grad()
def first_levels(
    loaded: LoadedModel, grid: LevelGrid, units: Sequence[Unit], pruner: Pruner, statistics: dict[str, Statistics]
) -> dict[str, Tensor]:
    """Unit name -> for every weight [O, I] the number of the first level that removes it, one above the last where none does.

    Args:
        loaded: the dense model.
        grid: its levels.
        units: those that are looked at.
        pruner: in whose order the weights go.
        statistics: unit name -> complete statistics.

    Raises:
        PruningError: when a unit's scores are not finite; the message names the unit.
    """
    numbers = {}
    for unit in units:
        with naming(unit.name):
            ranks_OI = pruner.ranks(weight_view(loaded.model, unit), statistics[unit.name])
        levels = grid.levels[unit.name]
        boundaries = torch.tensor(levels.items, device=ranks_OI.device)
        numbers[unit.name] = torch.bucketize(ranks_OI, boundaries, right=True).to(number_dtype(levels.n_steps))
    return numbers


def number_dtype(n_levels: int) -> torch.dtype:
    """The shortest integers that tell the levels of a unit apart."""
    return next(dtype for dtype in (torch.uint8, torch.int16, torch.int32) if n_levels < torch.iinfo(dtype).max)
