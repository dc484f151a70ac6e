"""Units, level grids and allocations: exact arithmetic in weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        >>> project({"a": 0.5, "b": 0.5}, grid, n_target_weights=200)
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
    def with_constant_step(cls, units: Sequence[Unit], fraction_of_smallest: float, max_sparsity: float = 1.0) -> "LevelGrid":
        """Levels a constant number of weights apart, so that any two units can exchange them (EvoPress, arXiv 2410.14649, §3).

        Args:
            units: the units in model order.
            fraction_of_smallest: step as a fraction of the smallest unit's weights, in (0, 1].
            max_sparsity: highest sparsity of a unit, in (0, 1].

        Raises:
            AllocationError: when there is no unit.
        """
        step_weights = max(1, _floor(fraction_of_smallest * min((unit.n_weights for unit in units), default=1)))
        step = {unit.name: max(1, step_weights // unit.weights_per_item) for unit in units}
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

    def n_weights(self) -> int:
        """Weights of all units."""
        return sum(unit.n_weights for unit in self.units)

    def n_removed_weights(self, allocation: Allocation) -> int:
        """Weights that the allocation removes: exact, in weights."""
        return sum(allocation[unit.name] * unit.weights_per_item for unit in self.units)

    def sparsity(self, allocation: Allocation) -> float:
        """Removed weights over all weights of the units."""
        return self.n_removed_weights(allocation) / self.n_weights()

    def sparsities(self, allocation: Allocation) -> dict[str, float]:
        """Unit name -> sparsity of that unit."""
        return {unit.name: allocation[unit.name] / unit.n_items for unit in self.units}

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


def project(sparsities: Mapping[str, float], grid: LevelGrid, n_target_weights: int) -> Allocation:
    """The allocation nearest to the wished sparsities that meets the budget.

    All sparsities are shifted by one constant (clipped to what each unit allows) until they remove the target, rounded down
    to the grid, and raised one step each in order of the largest remainder.

    Args:
        sparsities: unit name -> wished sparsity; any finite number.
        grid: the allowed levels.
        n_target_weights: weights to remove at least.

    Returns:
        An allocation that removes at least `n_target_weights` weights, and less than one step more when all steps are equal
        in weights (else less than the step of any unit that could give one back).

    Raises:
        AllocationError: when the target is out of reach or a wish is not finite.
    """
    reachable = sum(grid.max_level(unit) * unit.weights_per_item for unit in grid.units)
    if not 0 <= n_target_weights <= reachable:
        raise AllocationError(
            f"the budget asks to remove {n_target_weights:,} weights, but the level grid allows 0 to {reachable:,} of "
            f"{grid.n_weights():,}; lower budget.sparsity or raise search.max_sparsity"
        )
    for unit in grid.units:
        if not math.isfinite(sparsities[unit.name]):
            raise AllocationError(f"a wished sparsity must be finite, got {sparsities[unit.name]} for {unit.name}")
    total = _total(sparsities, grid, shift=0.0)
    low, high = (-1.0, 0.0) if total > n_target_weights else (0.0, 1.0)
    span = 1.0 + max(abs(sparsities[unit.name]) for unit in grid.units)
    low, high = low * span, high * span
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if _total(sparsities, grid, middle) < n_target_weights else (low, middle)
    wished = {unit.name: _clip(sparsities[unit.name] + high, unit, grid) for unit in grid.units}
    return _round_to_budget(wished, grid, n_target_weights)


def _clip(sparsity: float, unit: Unit, grid: LevelGrid) -> float:
    """A sparsity that the unit allows."""
    return min(max(sparsity, 0.0), grid.max_level(unit) / unit.n_items)


def _total(sparsities: Mapping[str, float], grid: LevelGrid, shift: float) -> float:
    return sum(_clip(sparsities[unit.name] + shift, unit, grid) * unit.n_weights for unit in grid.units)


def _round_to_budget(wished: Mapping[str, float], grid: LevelGrid, n_target_weights: int) -> Allocation:
    """Rounds down, then raises by the largest remainder until the target is met, then gives back what is not needed."""
    steps = {unit.name: wished[unit.name] * unit.n_items / grid.step[unit.name] for unit in grid.units}
    allocation = {unit.name: grid.step[unit.name] * _floor(steps[unit.name]) for unit in grid.units}
    missing = n_target_weights - grid.n_removed_weights(allocation)
    by_remainder = sorted(grid.units, key=lambda unit: _floor(steps[unit.name]) - steps[unit.name])
    while missing > 0:
        for unit in by_remainder:
            if missing > 0 and allocation[unit.name] < grid.max_level(unit):
                allocation[unit.name] += grid.step[unit.name]
                missing -= grid.step_weights(unit)
    for unit in sorted(by_remainder[::-1], key=lambda unit: -grid.step_weights(unit)):
        n_back = min(-missing // grid.step_weights(unit), allocation[unit.name] // grid.step[unit.name])
        allocation[unit.name] -= n_back * grid.step[unit.name]
        missing += n_back * grid.step_weights(unit)
    return allocation


def _floor(value: float) -> int:
    """The floor, where a value that rounding left just below a whole number counts as that number."""
    return math.floor(value + 1e-6)
