"""Units, level grids and allocations: exact arithmetic in weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from selfprune.allocations.cost import ROUNDING, LinearCost, UnitCost
from selfprune.allocations.projection import meet_target
from selfprune.errors import AllocationError, did_you_mean

Allocation = dict[str, int]
"""Unit name -> level (number of removed items). The genome of the search."""


@dataclass(frozen=True)
class Unit:
    """Something that can be pruned by degrees.

    Attributes:
        name: the parameter's path in the model without `.weight`, such as `model.layers.3.mlp.up_proj`.
        block: index of the decoder block that holds it.
        kind: its path inside the block, such as `mlp.up_proj`; the same in every block.
        n_items: how many items can be removed.
        weights_per_item: weights that go with one item; 1 for unstructured sparsity.
    """

    name: str
    block: int
    kind: str
    n_items: int
    weights_per_item: int = 1

    @property
    def n_weights(self) -> int:
        """Weights of the whole unit."""
        return self.n_items * self.weights_per_item


@dataclass(frozen=True)
class LevelGrid:
    """The levels that each unit may take.

    Attributes:
        units: the units in model order.
        step: unit name -> items between adjacent levels.
        n_levels: unit name -> number of steps from 0 to the unit's highest level.

    Example:
        >>> units = [Unit("a", 0, "a", 100), Unit("b", 0, "b", 300)]
        >>> grid = LevelGrid.with_constant_step(units, fraction_of_smallest=0.05)
        >>> project({"a": 0.5, "b": 0.5}, grid, n_target=200)
        {'a': 50, 'b': 150}
    """

    units: tuple[Unit, ...]
    step: Mapping[str, int]
    n_levels: Mapping[str, int]

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
        step = {unit.name: max(1, step_weights // divisor[unit.name] // unit.weights_per_item) for unit in units}
        n_levels = {unit.name: _floor(max_sparsity * unit.n_items) // step[unit.name] for unit in units}
        return cls(tuple(units), step, n_levels)

    @classmethod
    def with_single_level(cls, units: Sequence[Unit], fraction: float) -> "LevelGrid":
        """Each unit is dense or at one sparsity, as under an N:M pattern.

        Args:
            units: the units in model order.
            fraction: that sparsity, in (0, 1).

        Raises:
            AllocationError: when there is no unit.
        """
        step = {unit.name: max(1, round(fraction * unit.n_items)) for unit in units}
        return cls(tuple(units), step, dict.fromkeys(step, 1))

    def step_weights(self, unit: Unit) -> int:
        """Weights between adjacent levels of a unit."""
        return self.step[unit.name] * unit.weights_per_item

    def max_level(self, unit: Unit) -> int:
        """The highest level of a unit, in items."""
        return self.step[unit.name] * self.n_levels[unit.name]

    @cached_property
    def weight_costs(self) -> dict[str, UnitCost]:
        """Unit name -> the weights that its levels remove."""
        return self.costs({unit.name: unit.weights_per_item for unit in self.units})

    def costs(self, per_item: Mapping[str, int]) -> dict[str, UnitCost]:
        """Unit name -> what its levels save, where every item of a unit costs the same."""
        return {
            unit.name: LinearCost(unit.n_items, self.step[unit.name], self.n_levels[unit.name], per_item[unit.name])
            for unit in self.units
        }

    def n_weights(self) -> int:
        """Weights of all units."""
        return sum(unit.n_weights for unit in self.units)

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
        for unit in self.units:
            moved = max(1, round(sparsity * unit.n_items / self.step[unit.name])) * self.step[unit.name]
            below[unit.name] = max(0, allocation[unit.name] - moved)
            above[unit.name] = min(self.max_level(unit), allocation[unit.name] + moved)
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
            level = allocation[unit.name]
            if not 0 <= level <= self.max_level(unit) or level % self.step[unit.name]:
                raise AllocationError(
                    f"the level of {unit.name} must be a multiple of {self.step[unit.name]} in [0, {self.max_level(unit)}], "
                    f"got {level}; pass allocations through `project`"
                )


def n_removed_weights(allocation: Allocation, units: Sequence[Unit]) -> int:
    """Weights that go with the items which an allocation removes of these units."""
    return sum(allocation[unit.name] * unit.weights_per_item for unit in units)


def sparsity_of(allocation: Allocation, units: Sequence[Unit]) -> float:
    """The share of the weights of these units that goes."""
    return n_removed_weights(allocation, units) / sum(unit.n_weights for unit in units)


def project(
    sparsities: Mapping[str, float], grid: LevelGrid, n_target: int, costs: Mapping[str, UnitCost] | None = None
) -> Allocation:
    """The allocation nearest to the wished sparsities that meets the budget.

    All sparsities are shifted by one constant (clipped to what each unit allows) until they save the target, rounded down
    to the useful levels, and raised one level each in order of the largest remainder.

    Args:
        sparsities: unit name -> wished sparsity; any finite number.
        grid: the allowed levels.
        n_target: what must be saved at least: weights, or whatever `costs` counts.
        costs: unit name -> what its levels save; weights where it is left out.

    Returns:
        An allocation that saves at least `n_target`, and less than one step more when all steps are equal (else less than
        the step of any unit that could give one back). Levels that save no more than the one below are not taken.

    Raises:
        AllocationError: when the target is out of reach or a wish is not finite.
    """
    of_all = "" if costs else f" of {grid.n_weights():,}"
    costs = costs or grid.weight_costs
    reachable = sum(costs[unit.name].saved(costs[unit.name].highest) for unit in grid.units)
    if not 0 <= n_target <= reachable:
        asked = f"remove {n_target:,} weights" if of_all else f"save {n_target:,}"
        raise AllocationError(
            f"the budget asks to {asked}, but the level grid allows 0 to {reachable:,}{of_all}; lower budget.sparsity or raise "
            "search.max_sparsity"
        )
    for unit in grid.units:
        if not math.isfinite(sparsities[unit.name]):
            raise AllocationError(f"a wished sparsity must be finite, got {sparsities[unit.name]} for {unit.name}")
    return meet_target({unit.name: sparsities[unit.name] for unit in grid.units}, costs, n_target)


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
