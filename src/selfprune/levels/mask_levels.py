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
        return _masked(self._dense[unit.name], spread(unit, self._stays(unit, level)))

    def first_order_change(self, gradient_OI: Tensor, unit: Unit, denser: int) -> float:
        """The gradient times the weights that return."""
        returns = self._stays(unit, denser) ^ self._stays(unit, self.allocation[unit.name])
        returning_OI = _masked(self._dense[unit.name], spread(unit, returns))
        return float(torch.dot(gradient_OI.float().flatten(), returning_OI.float().flatten()))

    @torch.no_grad()
    def _take(self, units: Sequence[Unit], statistics: dict[str, Statistics]) -> None:
        """Notes for each item the number of the first level that removes it, one above the last where none does."""
        for unit in units:
            with naming_unit(unit.name):
                ranks = self._pruner.ranks(by_item(unit, self._dense[unit.name]), statistics[unit.name])
            levels = self.grid.levels[unit.name]
            boundaries = torch.tensor(levels.items, device=ranks.device)
            self._first_levels[unit.name] = torch.bucketize(ranks, boundaries, right=True).to(number_dtype(levels.n_steps))

    def _stays(self, unit: Unit, level: int) -> Tensor:
        """All bits of an integer for every item that stays at a level, and none for the others.

        Comparing and choosing item by item takes twenty times as long, since no processor foretells which item stays.
        """
        first = self._first_levels[unit.name]
        wide = torch.promote_types(_integers(self._dense[unit.name]), first.dtype)
        # the sign of a difference that is negative where the level that removes the item is a later one
        return first.to(wide, copy=True).neg_().add_(self._number(unit, level)).bitwise_right_shift_(torch.iinfo(wide).bits - 1)

    def _number(self, unit: Unit, level: int) -> int:
        """Steps from dense to a level."""
        levels = self.grid.levels[unit.name]
        if level not in levels:
            raise levels.missing(unit.name, level)
        return levels.index(level)


def number_dtype(n_steps: int) -> torch.dtype:
    """The shortest integers that tell the levels of a unit apart."""
    return next(dtype for dtype in (torch.uint8, torch.int16, torch.int32) if n_steps < torch.iinfo(dtype).max)


def _integers(weight: Tensor) -> torch.dtype:
    """Integers as long as a weight."""
    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]


def _masked(weight_OI: Tensor, stays_OI: Tensor) -> Tensor:
    """The weights where all bits are set, and zero where none is."""
    bits = _integers(weight_OI)
    return (weight_OI.view(bits) & stays_OI.to(bits)).view(weight_OI.dtype)
