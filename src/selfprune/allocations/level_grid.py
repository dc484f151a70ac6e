"""The units of a model with the levels that each may take; levels save weights here, counted exactly."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from selfprune.allocations.levels import ROUNDING, Levels
from selfprune.allocations.unit import Allocation, Item, Unit, n_removed_weights, n_weights, sparsity_of
from selfprune.errors import AllocationError, did_you_mean


@dataclass(frozen=True)
class LevelGrid:
    """The levels that each unit may take.

    Attributes:
        units: the units in model order.
        levels: unit name -> its levels in the same order, and the weights that each removes.

    Example:
        >>> units = [Unit("a", 0, "a", 100), Unit("b", 0, "b", 300)]
        >>> grid = LevelGrid.with_constant_step(units, fraction_of_smallest=0.05)
        >>> project({"a": 0.5, "b": 0.5}, grid.levels, n_target=200)
        {'a': 50, 'b': 150}
    """

    units: tuple[Unit, ...]
    levels: Mapping[str, Levels]

    def __post_init__(self) -> None:
        if not self.units:
            raise AllocationError(
                "a level grid needs at least one unit, got none; check the model and the units that were asked for"
            )

    @classmethod
    def with_constant_step(
        cls,
        units: Sequence[Unit],
        fraction_of_smallest: float,
        max_sparsity: float = 1.0,
        finer: Mapping[str, int] | None = None,
    ) -> "LevelGrid":
        """Levels a constant number of weights apart, so that any two units can exchange them (EvoPress, arXiv 2410.14649, §3).

        Args:
            units: the units in model order.
            fraction_of_smallest: step as a fraction of the smallest unit's weights, in (0, 1].
            max_sparsity: highest sparsity of a unit, in (0, 1].
            finer: glob over unit kinds -> how many levels take the place of one; the finest counts where several match. The
                constant step is rounded down to a number that all of them divide, so that exchanges stay exact.

        Raises:
            AllocationError: when there is no unit, or a glob matches none.
        """
        finer = finer or {}
        _check_finer(units, finer)
        divisor = {unit.name: max((n for glob, n in finer.items() if fnmatchcase(unit.kind, glob)), default=1) for unit in units}
        common = math.lcm(*divisor.values())
        step_weights = max(1, _floor(fraction_of_smallest * min((unit.n_weights for unit in units), default=1)))
        step_weights = max(common, step_weights // common * common)
        levels = {}
        for unit in units:
            step = max(1, step_weights // divisor[unit.name] // unit.weights_per_item)
            levels[unit.name] = _even(unit, step, _floor(max_sparsity * unit.n_items) // step)
        return cls(tuple(units), levels)

    @classmethod
    def with_single_level(cls, units: Sequence[Unit], fraction: float) -> "LevelGrid":
        """Each unit is dense or at one sparsity, as under an N:M pattern.

        Args:
            units: the units in model order.
            fraction: that sparsity, in (0, 1).

        Raises:
            AllocationError: when there is no unit.
        """
        return cls(tuple(units), {unit.name: _even(unit, max(1, round(fraction * unit.n_items)), 1) for unit in units})

    @classmethod
    def of_structures(
        cls, units: Sequence[Unit], fraction_of_smallest: float, max_sparsity: float = 1.0, multiple: int = 1, whole: bool = False
    ) -> "LevelGrid":
        """Levels of heads and channels, about a constant number of weights apart; the last is all of them, the sublayer gone.

        Args:
            units: the units in model order.
            fraction_of_smallest: step as a fraction of the smallest unit's weights, in (0, 1]; at least one item.
            max_sparsity: highest sparsity of a unit, in (0, 1]; below 1 no sublayer goes.
            multiple: the channels that stay are a multiple of this.
            whole: no levels but 0 and all.

        Raises:
            AllocationError: when there is no unit.
        """
        step_weights = fraction_of_smallest * min((unit.n_weights for unit in units), default=1)
        levels = {}
        for unit in units:
            multiple_here = multiple if unit.item is Item.CHANNEL else 1
            step = math.ceil(max(1, _floor(step_weights / unit.weights_per_item)) / multiple_here) * multiple_here
            first = unit.n_items % multiple_here or step
            most = min(unit.n_items - max(1, unit.least_kept), _floor(max_sparsity * unit.n_items))
            between = [] if whole else range(first, most + 1, step)
            items = (0, *between, unit.n_items) if max_sparsity == 1 and not unit.least_kept else (0, *between)
            levels[unit.name] = Levels(unit.n_items, items, tuple(level * unit.weights_per_item for level in items))
        return cls(tuple(units), levels)

    def step_weights(self, unit: Unit) -> float:
        """Weights between adjacent levels of a unit, on average."""
        return self.levels[unit.name].step * unit.weights_per_item

    def highest_sparsity(self, unit: Unit) -> float:
        """The sparsity of the highest level of a unit."""
        return self.levels[unit.name].highest / unit.n_items

    def n_weights(self) -> int:
        """Weights of all units."""
        return n_weights(self.units)

    def n_removed_weights(self, allocation: Allocation, units: Sequence[Unit] | None = None) -> int:
        """Weights that the allocation removes, of these units or of all: exact, in weights."""
        return n_removed_weights(allocation, self.units if units is None else units)

    def sparsity(self, allocation: Allocation, units: Sequence[Unit] | None = None) -> float:
        """Removed weights over all weights: of these units, or of all."""
        return sparsity_of(allocation, self.units if units is None else units)

    def sparsities(self, allocation: Allocation) -> dict[str, float]:
        """Unit name -> sparsity of that unit."""
        return {unit.name: allocation[unit.name] / unit.n_items for unit in self.units}

    def genome(self, allocation: Allocation) -> tuple[int, ...]:
        """The levels in the order of the units: the same for equal allocations, however they were put together."""
        return tuple(allocation[unit.name] for unit in self.units)

    def bracket(self, allocation: Allocation, sparsity: float) -> tuple[Allocation, Allocation]:
        """The allocations below and above one in which every unit is moved by a sparsity, at least by one level.

        Args:
            allocation: levels of this grid.
            sparsity: how far; units stay within the grid.
        """
        below, above = {}, {}
        for name, levels in self.levels.items():
            n_steps = max(1, round(sparsity * levels.n_items / levels.step))
            below[name] = levels.moved(allocation[name], -n_steps)
            above[name] = levels.moved(allocation[name], n_steps)
        return below, above

    def check(self, allocation: Allocation) -> None:
        """Checks that an allocation names exactly these units and only levels of this grid.

        Raises:
            AllocationError: when it does not.
        """
        known = {unit.name for unit in self.units}
        for name in allocation.keys() - known:
            raise AllocationError(
                f"an allocation names the unit {name!r}, which this model lacks; its units, nearest first: "
                f"{did_you_mean(name, known)}"
            )
        for unit in self.units:
            if unit.name not in allocation:
                raise AllocationError(
                    f"an allocation must give a level to every unit, but {unit.name} has none; add it (0 leaves it dense)"
                )
            level, levels = allocation[unit.name], self.levels[unit.name]
            if level not in levels:
                raise levels.missing(unit.name, level)


def _even(unit: Unit, step: int, n_steps: int) -> Levels:
    return Levels.even(unit.n_items, step, n_steps, unit.weights_per_item)


def _check_finer(units: Sequence[Unit], finer: Mapping[str, int]) -> None:
    kinds = list(dict.fromkeys(unit.kind for unit in units))
    for glob in finer:
        if not any(fnmatchcase(kind, glob) for kind in kinds):
            raise AllocationError(
                f"search.finer names {glob!r}, which matches no kind of unit; the kinds of this model, nearest first: "
                f"{did_you_mean(glob, kinds)}"
            )


def _floor(value: float) -> int:
    """The floor, where a value that rounding left just below a whole number counts as that number."""
    return math.floor(value + ROUNDING)
