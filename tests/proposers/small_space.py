"""A small search space whose units differ in size, one of them not divisible by the step."""

import math

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.proposers.base import SearchSpace

SIZES = {"q": 400, "k": 100, "up": 1000, "down": 1003}
UNITS = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(4) for kind, n in SIZES.items()]
GRID = LevelGrid.with_constant_step(UNITS, 0.05)
SPACE = SearchSpace(GRID, Target.in_weights(GRID, math.ceil(0.6 * GRID.n_weights())))
STEP = 5
UNIFORM = SPACE.project(dict.fromkeys([unit.name for unit in UNITS], 0.6))
