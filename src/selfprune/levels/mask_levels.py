"""Levels by masks alone: of each item the number of the level that removes it is kept, instead of weights per level.

A pruner that updates weights can so be searched by the masks of its own scores, without the update: the levels nest, and a level
costs no solve. `built_levels` has the update, at the price of a solve per level. The winner is pruned by the method itself.

Shape suffixes: O out, I in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Unit
from selfprune.errors import naming_unit
from selfprune.levels.level_store import LevelStore
from selfprune.models.loading import LoadedModel
from selfprune.models.units import by_item, spread
from selfprune.pruners.base import Pruner
from selfprune.statistics.base import Statistics


class MaskLevels(LevelStore):
    """The dense weights and, for every item, the level at which it goes.

    Memory beyond the model: one copy of the units' matrices, and one or two bytes an item. Nothing is written to disk.

    Args:
        loaded: the dense model.
        grid: units and their levels.
        pruner: in whose order the weights go.
    """

    def __init__(self, loaded: LoadedModel, grid: LevelGrid, pruner: Pruner) -> None:
        super().__init__(loaded, grid, pruner)
        self._first_levels: dict[str, Tensor] = {}

    def weight_at(self, unit: Unit, level: int) -> Tensor:
        """The dense weight without what goes up to this level."""
        stays_OI = spread(unit, self._first_levels[unit.name] > self._number(unit, level))
        return torch.where(stays_OI, self._dense[unit.name], 0)

    def first_order_change(self, gradient_OI: Tensor, unit: Unit, denser: int) -> float:
        """The gradient times the weights that return."""
        first, dense_OI = self._first_levels[unit.name], self._dense[unit.name]
        returns = (first > self._number(unit, denser)) & (first <= self._number(unit, self.allocation[unit.name]))
        returns_OI = spread(unit, returns).expand_as(dense_OI)
        return float(torch.dot(gradient_OI[returns_OI].float(), dense_OI[returns_OI].float()))

    @torch.no_grad()
    def _take(self, units: Sequence[Unit], statistics: dict[str, Statistics]) -> None:
        """Notes for each item the number of the first level that removes it, one above the last where none does."""
        for unit in units:
            with naming_unit(unit.name):
                ranks = self._pruner.ranks(by_item(unit, self._dense[unit.name]), statistics[unit.name])
            levels = self.grid.levels[unit.name]
            boundaries = torch.tensor(levels.items, device=ranks.device)
            self._first_levels[unit.name] = torch.bucketize(ranks, boundaries, right=True).to(number_dtype(levels.n_steps))

    def _number(self, unit: Unit, level: int) -> int:
        """Steps from dense to a level."""
        levels = self.grid.levels[unit.name]
        if level not in levels:
            raise levels.missing(unit.name, level)
        return levels.index(level)


def number_dtype(n_steps: int) -> torch.dtype:
    """The shortest integers that tell the levels of a unit apart."""
    return next(dtype for dtype in (torch.uint8, torch.int16, torch.int32) if n_steps < torch.iinfo(dtype).max)
