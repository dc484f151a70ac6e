"""Move values of a score that is known in closed form, for tests of proposers that need gradients."""

import math
from dataclasses import dataclass, field

from selfprune.allocations.level_grid import LevelGrid
from selfprune.proposers.move_values import Look, MoveValues


@dataclass
class AnalyticOracle:
    """A separable score: the sum over units of sensitivity · weights · (exp(steepness · sparsity) − 1) / steepness.

    Attributes:
        grid: the units.
        sensitivities: unit name -> the factor.
        steepness: 0 makes the score linear.
        is_rich: whether calls can be paid.
        asked: the arguments of every call.
    """

    grid: LevelGrid
    sensitivities: dict[str, float]
    steepness: float = 4.0
    n_windows: int = 16
    is_rich: bool = True
    asked: list = field(default_factory=list)

    @classmethod
    def of(cls, grid, **changes):
        """Units differ by a factor of three, in an order that has nothing to do with blocks or kinds."""
        return cls(grid, {unit.name: 1.0 + i * 7 % 11 / 5 for i, unit in enumerate(grid.units)}, **changes)

    def damage(self, unit, level):
        sparsity = level / unit.n_items
        rise = math.expm1(self.steepness * sparsity) / self.steepness if self.steepness else sparsity
        return self.sensitivities[unit.name] * unit.n_weights * rise

    def score(self, allocation):
        return sum(self.damage(unit, allocation[unit.name]) for unit in self.grid.units)

    def __call__(self, allocation, bracket, start, n_windows):
        self.asked.append((dict(allocation), bracket, start, n_windows))
        restoring, removing = {}, {}
        for unit in self.grid.units:
            step, here = self.grid.levels[unit.name].items[1], allocation[unit.name]
            moved = max(1, round(bracket * unit.n_items / step)) * step
            for costs, end in (
                (restoring, max(0, here - moved)),
                (removing, min(self.grid.levels[unit.name].highest, here + moved)),
            ):
                if end != here:
                    costs[unit.name] = (self.damage(unit, here) - self.damage(unit, end)) / (here - end) * step
        return MoveValues(restoring, removing, 6 * n_windows)

    def affords(self, n_windows, n_times=1):
        return self.is_rich

    def known(self, allocation):
        return None

    def look(self, allocation, n_windows):
        return Look(self.score(allocation), n_windows) if self.is_rich else None
