"""Levels by masks alone: of each item the number of the level that removes it is kept, instead of weights per level.

A pruner that updates weights can so be searched by the masks of its own scores, without the update: the levels nest, and a level
costs no solve. `built_levels` has the update, at the price of a solve per level. The winner is pruned by the method itself.

Shape suffixes: O out, I in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Unit
from selfprune.errors import naming_unit
from selfprune.levels.dense_weights import DenseWeights
from selfprune.levels.level_store import LevelStore
from selfprune.models.loading import LoadedModel
from selfprune.models.units import by_item, spread, weight_view
from selfprune.pruners.base import Pruner
from selfprune.statistics.base import Statistics

N_OF_HALF_BYTE = 16
"""Numbers that half a byte tells apart."""


class MaskLevels(LevelStore):
    """The dense weights and, for every item, the level at which it goes.

    Memory beyond the model: what keeps the dense weights, and one or two bytes an item; where that is lean, these lie in main
    memory, and take half a byte where there are 15 levels or fewer. Nothing is written to disk.

    Args:
        loaded: the dense model.
        grid: units and their levels.
        pruner: in whose order the weights go.
        dense: keeps the dense weights; copies when None.
    """

    def __init__(self, loaded: LoadedModel, grid: LevelGrid, pruner: Pruner, dense: DenseWeights | None = None) -> None:
        super().__init__(loaded, grid, pruner, dense)
        self._first_levels: dict[str, Tensor | HalfBytes] = {}

    def weight_at(self, unit: Unit, level: int) -> Tensor:
        """The dense weight without what goes up to this level."""
        dense_OI = self._dense[unit.name]
        return _masked(dense_OI, spread(unit, self._stays(unit, level, dense_OI)))

    def first_order_change(self, gradient_OI: Tensor, unit: Unit, denser: int) -> float:
        """The gradient times the weights that return."""
        dense_OI = self._dense[unit.name]
        returns = self._stays(unit, denser, dense_OI) ^ self._stays(unit, self.allocation[unit.name], dense_OI)
        returning_OI = _masked(dense_OI, spread(unit, returns))
        return float(torch.dot(gradient_OI.float().flatten(), returning_OI.float().flatten()))

    @torch.no_grad()
    def _take(self, units: Sequence[Unit], statistics: dict[str, Statistics]) -> None:
        """Notes for each item the number of the first level that removes it, one above the last where none does."""
        for unit in units:
            with naming_unit(unit.name):
                ranks = self._pruner.ranks(by_item(unit, weight_view(self.loaded.model, unit)), statistics[unit.name])
            levels = self.grid.levels[unit.name]
            boundaries = torch.tensor(levels.items, device=ranks.device)
            first = torch.bucketize(ranks, boundaries, right=True).to(number_dtype(levels.n_steps))
            if self._dense.is_lean:
                first = first.cpu()
            # they count from 1, since no weight goes at level 0
            is_short = self._dense.is_lean and levels.n_steps < N_OF_HALF_BYTE
            self._first_levels[unit.name] = HalfBytes.of(first - 1) if is_short else first

    def _stays(self, unit: Unit, level: int, dense_OI: Tensor) -> Tensor:
        """All bits of an integer for every item that stays at a level, and none for the others.

        Comparing and choosing item by item takes twenty times as long, since no processor foretells which item stays.
        """
        kept = self._first_levels[unit.name]
        first = (kept.numbers() + 1 if isinstance(kept, HalfBytes) else kept).to(dense_OI.device)
        wide = torch.promote_types(_integers(dense_OI), first.dtype)
        # the sign of a difference that is negative where the level that removes the item is a later one
        return first.to(wide, copy=True).neg_().add_(self._number(unit, level)).bitwise_right_shift_(torch.iinfo(wide).bits - 1)

    def _number(self, unit: Unit, level: int) -> int:
        """Steps from dense to a level."""
        levels = self.grid.levels[unit.name]
        if level not in levels:
            raise levels.missing(unit.name, level)
        return levels.index(level)


@dataclass(frozen=True)
class HalfBytes:
    """Numbers below 16, two to a byte.

    Attributes:
        pairs: the bytes.
        shape: of the numbers.
    """

    pairs: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, numbers: Tensor) -> "HalfBytes":
        """Packs numbers of one byte."""
        flat = nn.functional.pad(numbers.flatten(), (0, numbers.numel() % 2))
        return cls((flat[0::2] << 4) | flat[1::2], numbers.shape)

    def numbers(self) -> Tensor:
        """One byte each again."""
        return torch.stack((self.pairs >> 4, self.pairs & 15), dim=1).flatten()[: self.shape.numel()].view(self.shape)


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
