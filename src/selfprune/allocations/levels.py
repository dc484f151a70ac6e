"""The levels of a unit, and what each of them saves, in the whole numbers of whatever a budget measures."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfprune.errors import AllocationError

ROUNDING = 1e-6
"""A part of a step; a number of steps that rounding left this little below a whole number counts as that number."""


@dataclass(frozen=True)
class Levels:
    """How many items of a unit may go, and what that saves; sums and comparisons of savings are exact.

    Attributes:
        n_items: items of the unit.
        items: the levels, rising from 0; the last may be all items, whatever the steps before.
        saved: what each level saves, rising from 0.

    Example:
        >>> levels = Levels.even(n_items=100, step=5, n_steps=20, per_item=2)
        >>> levels.saved_at(10), levels.near(0.125), levels.below(0.125), levels.next(10)
        (20, 25.0, (10, 0.5), 15)
    """

    n_items: int
    items: Sequence[int]
    saved: Sequence[int]

    @classmethod
    def even(cls, n_items: int, step: int, n_steps: int, per_item: int) -> "Levels":
        """Levels a constant number of items apart, where every item saves the same.

        Args:
            n_items: items of the unit.
            step: items between adjacent levels.
            n_steps: steps from 0 to the highest level.
            per_item: what one item saves.
        """
        end = step * n_steps + 1
        return cls(n_items, range(0, end, step), range(0, end * per_item, step * per_item))

    def priced(self, per_item: int) -> "Levels":
        """The same levels, where every item saves so much."""
        return Levels(self.n_items, self.items, tuple(level * per_item for level in self.items))

    def useful(self, saved: Sequence[int]) -> "Levels":
        """Leaves out the levels that save no more than the one below: weights would be removed for nothing.

        Args:
            saved: what the levels save; 0 first, and never less than before.
        """
        kept = [i for i, value in enumerate(saved) if i == 0 or value > saved[i - 1]]
        return Levels(self.n_items, tuple(self.items[i] for i in kept), tuple(saved[i] for i in kept))

    @property
    def highest(self) -> int:
        """The highest level."""
        return self.items[-1]

    @property
    def n_steps(self) -> int:
        """Steps from 0 to the highest level."""
        return len(self.items) - 1

    @property
    def step(self) -> float:
        """Items between adjacent levels, on average; all items where there is no level above 0."""
        return self.highest / self.n_steps if self.n_steps else float(self.n_items)

    def index(self, level: float) -> int:
        """Which of the levels is at a number of items, or the nearest below it."""
        return bisect_right(self.items, level) - 1

    def __contains__(self, level: int) -> bool:
        return level in self.items

    def missing(self, unit: str, level: int) -> AllocationError:
        """What to say of a number of items that is no level.

        Args:
            unit: name of the unit.
            level: the number.
        """
        return AllocationError(
            f"{unit} has {self.n_steps + 1} levels from 0 to {self.highest:,} items, and none at {level:,}, to which "
            f"{self.nearest(level / self.n_items):,} is nearest; pass allocations through `project`"
        )

    def saved_at(self, level: int) -> int:
        """What a number of items saves that is a level; else what the nearest level below it does."""
        return self.saved[self.index(level)]

    def next(self, level: int) -> int:
        """The level above one that is not the highest."""
        return self.items[self.index(level) + 1]

    def previous(self, level: int) -> int:
        """The level below one above 0."""
        return self.items[bisect_left(self.items, level) - 1]

    def moved(self, level: int, n_steps: int) -> int:
        """The level so many steps above one, or below where they are less than 0; the last on the way where there are fewer."""
        return self.items[min(max(0, self.index(level) + n_steps), self.n_steps)]

    def nearest(self, sparsity: float) -> int:
        """The level nearest to a sparsity."""
        return self.items[round(sum(self._place(sparsity)))]

    def at_least(self, sparsity: float) -> int:
        """The lowest level at a sparsity or above; the highest where there is none."""
        return self.items[min(bisect_left(self.items, sparsity * self.n_items), self.n_steps)]

    def near(self, sparsity: float) -> float:
        """What any sparsity would save, in a straight line between the levels around it; clipped to what they allow."""
        level = self._clipped(sparsity)
        low = self.index(level)
        if low == self.n_steps:
            return float(self.saved[low])
        # from the level below and not by the fraction of `_place`, which rounds once more: remainders that are equal would not be
        return self.saved[low] + (level - self.items[low]) * self._price(low)

    def line(self, start: float, end: float) -> Callable[[float], float]:
        """What `near` gives for the sparsities between two, to the bit, and sooner where no level is in between.

        Args:
            start: the lower sparsity.
            end: the higher one.

        Returns:
            A function of one such sparsity.
        """
        first, last = self._clipped(start), self._clipped(end)
        low = self.index(first)
        if first == last:
            saved = self.near(start)
            return lambda _: saved
        is_clipped = first != start * self.n_items or last != end * self.n_items
        if is_clipped or low != self.index(last) or low == self.n_steps:
            return self.near
        saved, items, price, n_items = self.saved[low], self.items[low], self._price(low), self.n_items
        return lambda sparsity: saved + (sparsity * n_items - items) * price

    def _price(self, low: int) -> float:
        """What an item saves between a level, by its index, and the next."""
        return (self.saved[low + 1] - self.saved[low]) / (self.items[low + 1] - self.items[low])

    def below(self, sparsity: float) -> tuple[int, float]:
        """The level at a sparsity or below it, and how far the sparsity is on the way to the next, as a fraction."""
        low, fraction = self._place(sparsity)
        return (self.items[low + 1], fraction - 1) if fraction >= 1 - ROUNDING else (self.items[low], fraction)

    def _place(self, sparsity: float) -> tuple[int, float]:
        """The index of the level at or below a sparsity, and the fraction of the way to the next; 0 at the highest."""
        level = self._clipped(sparsity)
        low = self.index(level)
        if low == self.n_steps:
            return low, 0.0
        gap = self.items[low + 1] - self.items[low]
        return low, level / gap - self.items[low] / gap

    def _clipped(self, sparsity: float) -> float:
        """Items that go at a sparsity, within what the levels allow."""
        return min(max(sparsity, 0.0), self.highest / self.n_items) * self.n_items
