"""What a weight of every unit is worth, as gradients or sensitivities say."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Unit
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.move_values import MoveValues


@dataclass(frozen=True)
class UnitValues:
    """What a weight is worth: what counts when weights are exchanged. What is no number is left out.

    Attributes:
        gains: unit name -> fall of the score per weight that returns.
        costs: unit name -> rise of the score per weight that goes.
    """

    gains: dict[str, float]
    costs: dict[str, float]

    def mean(self, unit: Unit) -> float:
        """Gain and cost in one; noise below zero, and what is unknown, count as nothing."""
        known = [by_name[unit.name] for by_name in (self.gains, self.costs) if unit.name in by_name]
        return max(0.0, sum(known) / len(known)) if known else 0.0

    @classmethod
    def of_moves(cls, values: MoveValues, grid: LevelGrid) -> "UnitValues":
        """What gradients say."""
        return cls(*(_per_weight(by_name, grid.step_weights, grid) for by_name in (values.restoring, values.removing)))

    @classmethod
    def of_sensitivities(cls, space: SearchSpace) -> "UnitValues | None":
        """What pruning every unit alone has shown, for gains and costs alike; None where it was not tried."""
        if not space.sensitivities:
            return None
        rises = _per_weight(space.sensitivities, lambda unit: unit.n_weights, space.grid)
        return cls(rises, rises)


def _per_weight(by_name: Mapping[str, float], n_weights: Callable[[Unit], float], grid: LevelGrid) -> dict[str, float]:
    values = {unit: by_name.get(unit.name, math.nan) for unit in grid.units}
    return {unit.name: value / n_weights(unit) for unit, value in values.items() if math.isfinite(value)}
