"""What the levels of a unit save, in the whole numbers of whatever a budget constrains."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

ROUNDING = 1e-6
"""A part of a step; a number of steps that rounding left this little below a whole number counts as that number."""


class UnitCost(Protocol):
    """What one unit saves at each of its useful levels: those that save more than the level below.

    Levels count items; what they save is a whole number, so that sums and comparisons are exact.

    Example:
        >>> cost = LinearCost(n_items=100, step=5, n_levels=20, per_item=2)
        >>> cost.saved(10), cost.near(0.125), cost.below(0.125), cost.next(10)
        (20, 25.0, (10, 0.5), 15)
    """

    @property
    def highest(self) -> int:
        """The highest useful level."""
        ...

    def saved(self, level: int) -> int:
        """What a level saves."""
        ...

    def near(self, sparsity: float) -> float:
        """What any sparsity would save, in a straight line between the useful levels around it; clipped to what they allow."""
        ...

    def below(self, sparsity: float) -> tuple[int, float]:
        """The useful level at a sparsity or below it, and how far the sparsity is on the way to the next, as a fraction."""
        ...

    def next(self, level: int) -> int:
        """The useful level above one that is not the highest."""
        ...

    def previous(self, level: int) -> int:
        """The useful level below one above 0."""
        ...


@dataclass(frozen=True)
class LinearCost:
    """A unit whose every item costs the same.

    Attributes:
        n_items: items of the unit.
        step: items between adjacent levels.
        n_levels: steps from 0 to the highest level.
        per_item: what one item costs.
    """

    n_items: int
    step: int
    n_levels: int
    per_item: int

    @property
    def highest(self) -> int:
        """The highest level."""
        return self.step * self.n_levels

    def saved(self, level: int) -> int:
        """What a level saves."""
        return level * self.per_item

    def near(self, sparsity: float) -> float:
        """What any sparsity would save."""
        return self._clip(sparsity) * (self.n_items * self.per_item)

    def below(self, sparsity: float) -> tuple[int, float]:
        """The level at a sparsity or below it, and how far it is on the way to the next."""
        n_steps = self._clip(sparsity) * self.n_items / self.step
        whole = math.floor(n_steps + ROUNDING)
        return self.step * whole, n_steps - whole

    def next(self, level: int) -> int:
        """The level above."""
        return level + self.step

    def previous(self, level: int) -> int:
        """The level below."""
        return level - self.step

    def _clip(self, sparsity: float) -> float:
        return min(max(sparsity, 0.0), self.highest / self.n_items)


@dataclass(frozen=True)
class TableCost:
    """A unit whose levels save what a table says.

    Attributes:
        n_items: items of the unit.
        levels: the useful levels, rising from 0.
        savings: what each of them saves, rising from 0.
    """

    n_items: int
    levels: tuple[int, ...]
    savings: tuple[int, ...]

    @classmethod
    def of_useful(cls, n_items: int, step: int, savings: Sequence[int]) -> "TableCost":
        """Leaves out the levels that save no more than the one below: weights would be removed for nothing.

        Args:
            n_items: items of the unit.
            step: items between adjacent levels.
            savings: what the levels 0, step, 2 step, ... save; 0 first, and never less than before.
        """
        useful = [i for i, saved in enumerate(savings) if i == 0 or saved > savings[i - 1]]
        return cls(n_items, tuple(i * step for i in useful), tuple(savings[i] for i in useful))

    @property
    def highest(self) -> int:
        """The highest useful level."""
        return self.levels[-1]

    def saved(self, level: int) -> int:
        """What a level saves, useful or not."""
        return self.savings[self._index(level)]

    def near(self, sparsity: float) -> float:
        """What any sparsity would save, in a straight line between the useful levels around it."""
        i, fraction = self._place(sparsity)
        return self.savings[i] + (fraction * (self.savings[i + 1] - self.savings[i]) if fraction else 0.0)

    def below(self, sparsity: float) -> tuple[int, float]:
        """The useful level at a sparsity or below it, and how far it is on the way to the next."""
        i, fraction = self._place(sparsity)
        return (self.levels[i + 1], fraction - 1) if fraction >= 1 - ROUNDING else (self.levels[i], fraction)

    def next(self, level: int) -> int:
        """The useful level above."""
        return self.levels[self._index(level) + 1]

    def previous(self, level: int) -> int:
        """The useful level below."""
        return self.levels[self._index(level) - 1]

    def _index(self, level: float) -> int:
        """Of the useful level at a level or below it."""
        return bisect_right(self.levels, level) - 1

    def _place(self, sparsity: float) -> tuple[int, float]:
        """The index of the useful level at or below a sparsity, and the fraction of the way to the next; 0 at the highest."""
        level = min(max(sparsity * self.n_items, 0.0), float(self.highest))
        i = self._index(level)
        if i == len(self.levels) - 1:
            return i, 0.0
        return i, (level - self.levels[i]) / (self.levels[i + 1] - self.levels[i])
