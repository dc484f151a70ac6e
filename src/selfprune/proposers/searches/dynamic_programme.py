"""The optimum of a separable model of the damage, from contextual sensitivities (bit allocation: Shoham and Gersho, 1988).

Pruning a unit alone says little about what it costs among pruned ones. So the marginal cost per level of every unit is asked of
gradients (`MoveOracle`) at uniform allocations around the target, where all others are pruned too. A look at sparsity s with
bracket β gives two costs of a unit u, at s − β/2 and s + β/2. Isotonic regression over sparsity makes them rise; between them
log c_u is linear in the sparsity, and beyond them it goes on at the median slope of all units. The damage of level l is
D_u(l) = Σ_{j < l} c_u(j), and a dynamic programme over the units finds the least total damage that saves the target
(`least_damage`), within several bounds on the change from uniform:

    F_u(t) = min_l F_{u-1}(t − saved_u(l)) + D_u(l),    F_0(t) = 0 for t ≤ 0, else ∞.

Limits: all units move together from look to look, so that what the sparsity of the others adds to a unit's cost counts as its
own, which keeps solutions nearer to uniform than the best. The model is blind to terms between units and holds near the looks
only; hence the radii. It speaks once, and learns nothing from scores.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.typing import NDArray

from selfprune.allocations.candidate import Candidate, Proposal
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation
from selfprune.errors import AllocationError, ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace

Array = NDArray[np.float64]
Costs = dict[str, tuple[float, float]]
"""Unit name -> a sparsity, and what a level costs there."""

FLOOR = 0.1
"""Least cost per weight, as a share of what is typical there: lower ones, and those below zero, are mostly noise."""
STEEPEST = 20.0
"""Highest slope of a log cost beyond the looks, sevenfold from 0.1 to 0.1 of sparsity, lest noise between near looks explodes."""


@dataclass
class DynamicProgramme(ProposerConfig):
    """One allocation per radius, all from the same values.

    Attributes:
        offsets: sparsities, less the target, of the uniform allocations at which costs are asked for.
        n_windows: windows of every backward pass; the same for all offsets, so that they differ by the offset alone.
        bracket: change of sparsity over which a cost is taken, at least one level.
        radii: bounds on the change of a unit's sparsity from uniform, in the order in which they are proposed; 1 is no bound.
        max_steps: steps of the budget that the programme counts in at most; finer levels are taken several at a time.
    """

    offsets: list[float] = field(default_factory=lambda: [-0.15, 0.0, 0.15])
    n_windows: int = 4
    bracket: float = 0.05
    radii: list[float] = field(default_factory=lambda: [0.2, 0.1, 0.4, 1.0])
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        if not self.offsets or not all(-1 < offset < 1 for offset in self.offsets):
            raise ConfigError(f"offsets of the dynamic programme must lie in (-1, 1), got {self.offsets}; 0 looks at the target")
        if not self.radii or not all(0 < radius <= 1 for radius in self.radii):
            raise ConfigError(f"radii of the dynamic programme must lie in (0, 1], got {self.radii}; 1 is no bound")
        if self.n_windows < 1 or not 0 <= self.bracket <= 1 or self.max_steps < 1:
            raise ConfigError(
                "the dynamic programme needs n_windows >= 1, bracket in [0, 1] and max_steps >= 1, "
                f"got {self.n_windows}, {self.bracket} and {self.max_steps}"
            )

    @property
    def first_looks(self) -> tuple[int, int]:
        """One for every offset."""
        return len(self.offsets), self.n_windows

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """Looks when it is asked for the first time.

        Raises:
            ConfigError: when there are no gradients to be had.
        """
        if space.move_values is None:
            raise ConfigError("the dynamic programme needs gradients of the score, which this search does not offer")
        return DynamicProgrammeProposer(space, self)


@dataclass
class DynamicProgrammeProposer:
    """Says the solutions that differ, once each."""

    space: SearchSpace
    settings: DynamicProgramme
    name: str = field(default="dynamic_programme", init=False)

    def __post_init__(self) -> None:
        self._waiting: list[Proposal] | None = None

    def ask(self, n: int) -> list[Proposal]:
        """The next ones; the first carries the tokens of all looks. None where the tokens do not pay for these."""
        if n == 0:
            return []
        if self._waiting is None:
            assert self.space.move_values is not None
            if not self.space.move_values.affords(self.settings.n_windows, len(self.settings.offsets)):
                return []
            self._waiting = self._solve()
        said, self._waiting = self._waiting[:n], self._waiting[n:]
        return said

    def tell(self, candidates: list[Candidate]) -> None:
        """Nothing is learnt."""

    def _solve(self) -> list[Proposal]:
        looks, n_tokens = self._look()
        damages = damage_curves(self.space.grid, looks)
        solutions: dict[tuple[int, ...], Proposal] = {}
        for radius in self.settings.radii:
            allocation = self._optimum(damages, radius)
            proposal = Proposal(allocation, self.name, f"radius {radius:g}", proposal_tokens=0 if solutions else n_tokens)
            solutions.setdefault(self.space.grid.genome(allocation), proposal)
        return list(solutions.values())

    def _look(self) -> tuple[list[Costs], int]:
        """What the levels cost below and above every offset, and the tokens that were spent to find out."""
        grid, oracle, bracket = self.space.grid, self.space.move_values, self.settings.bracket
        assert oracle is not None
        looks: list[Costs] = []
        n_tokens = 0
        for offset in self.settings.offsets:
            here = {name: levels.nearest(self.space.target_sparsity + offset) for name, levels in grid.levels.items()}
            values = oracle(here, bracket, 0, self.settings.n_windows)
            n_tokens += values.n_tokens
            for costs, ends in zip((values.restoring, values.removing), grid.bracket(here, bracket), strict=True):
                looks.append({})
                for unit in grid.units:
                    if math.isfinite(costs.get(unit.name, math.nan)):
                        middle = (here[unit.name] + ends[unit.name]) / 2 / unit.n_items
                        looks[-1][unit.name] = middle, costs[unit.name]
        return looks, n_tokens

    def _optimum(self, damages: dict[str, Array], radius: float) -> Allocation:
        """The allocation of least damage within the radius, on the budget; `project` mends what coarse steps have rounded."""
        grid, target = self.space.grid, self.space.target
        indices, gains = {}, {}
        n_missing = target.n_saved
        for name, levels in grid.levels.items():
            low, high = (levels.index(levels.nearest(self.space.target_sparsity + change)) for change in (-radius, radius))
            indices[name] = np.arange(low, high + 1)
            saved = [target.levels[name].saved_at(level) for level in levels.items[low : high + 1]]
            saved_L = np.array(saved, dtype=np.int64)
            gains[name] = saved_L - saved_L[0]
            # What every choice saves needs no counting, which leaves finer steps to a small radius.
            n_missing -= int(saved_L[0])
        n_missing = max(0, n_missing)
        exact = math.gcd(*(int(np.gcd.reduce(gains_L)) for gains_L in gains.values())) or 1
        quantum = exact * max(1, math.ceil(n_missing / exact / self.settings.max_steps))
        # Rounded down, so that the true savings are no less.
        kept = {name: _least_levels(gains_L // quantum) for name, gains_L in gains.items()}
        steps = [gains[name][kept_L] // quantum for name, kept_L in kept.items()]
        indices = {name: indices[name][kept_L] for name, kept_L in kept.items()}
        n_steps = min(math.ceil(n_missing / quantum), sum(int(steps_L[-1]) for steps_L in steps))
        chosen = least_damage([damages[name][indices_L] for name, indices_L in indices.items()], steps, n_steps)
        here = {name: grid.levels[name].items[indices[name][i]] for name, i in zip(indices, chosen, strict=True)}
        return self.space.project(grid.sparsities(here))


def damage_curves(grid: LevelGrid, looks: Sequence[Costs]) -> dict[str, Array]:
    """Unit name -> the damage of its levels, 0 for the lowest, convex.

    Args:
        grid: units and levels.
        looks: what the levels cost. Of a look, the costs of all units have noise of one size, which grows with the costs.
    """
    points: dict[str, list[tuple[float, float, float]]] = {unit.name: [] for unit in grid.units}
    typical_points = []
    for look in looks:
        per_weight = {unit.name: look[unit.name][1] / grid.step_weights(unit) for unit in grid.units if unit.name in look}
        # Of absolute values, since half of the costs may be noise; in proportion to it, all looks weigh alike.
        typical = statistics.median(map(abs, per_weight.values())) if look else 0.0
        if typical > 0:
            typical_points.append((statistics.fmean(sparsity for sparsity, _ in look.values()), typical, typical))
            for name, cost in per_weight.items():
                points[name].append((look[name][0], max(cost, FLOOR * typical), typical))
    curves = {unit.name: _rising(points[unit.name] or typical_points or [(0.0, 1.0, 1.0)]) for unit in grid.units}
    rises = ((logs_S[-1] - logs_S[0], at_S[-1] - at_S[0]) for at_S, logs_S in curves.values())
    slopes = [rise / run for rise, run in rises if run > math.ulp(1)]  # nearer ones differ by less than a weight
    slope = min(STEEPEST, float(statistics.median(slopes or [0.0])))
    damages = {}
    for unit in grid.units:
        at_S, logs_S = curves[unit.name]
        items_L = np.array(grid.levels[unit.name].items)
        middles_L = (items_L[:-1] + items_L[1:]) / 2 / unit.n_items
        beyond_L = np.minimum(middles_L - at_S[0], 0) + np.maximum(middles_L - at_S[-1], 0)
        costs_L = np.exp(np.interp(middles_L, at_S, logs_S) + slope * beyond_L) * np.diff(items_L) * unit.weights_per_item
        damages[unit.name] = np.concatenate([[0.0], np.cumsum(costs_L)])
    return damages


def _rising(points: Sequence[tuple[float, float, float]]) -> tuple[Array, Array]:
    """Sparsities, and the logs of costs that rise over them; from sparsities, costs and the noise of these."""
    at_S, costs_S, noise_S = np.array(sorted(points)).T
    return at_S, np.log(scipy.optimize.isotonic_regression(costs_S, weights=noise_S**-2.0).x)


def least_damage(damages: Sequence[Array], steps: Sequence[NDArray[np.int64]], n_steps: int) -> list[int]:
    """Which choice of every unit makes the least total damage, of those that save enough together; exact for any damages.

    Args:
        damages: of the choices of every unit.
        steps: what these choices save, in steps of the budget, 0 or more.
        n_steps: what must be saved at least.

    Returns:
        the index of a choice of every unit. Takes n_steps times the number of choices in time, times that of units in memory.

    Raises:
        AllocationError: when the choices cannot save that much.
    """
    reachable = sum(int(steps_L.max()) for steps_L in steps)
    if n_steps > reachable:
        raise AllocationError(
            f"the units must save {n_steps} steps of the budget, but can save at most {reachable}; lower the target"
        )
    least_T = np.full(n_steps + 1, np.inf)
    least_T[0] = 0.0
    chosen_UT = np.zeros((len(damages), n_steps + 1), dtype=np.min_scalar_type(max(map(len, damages))))
    for unit, (damages_L, steps_L) in enumerate(zip(damages, steps, strict=True)):
        before_T, least_T = least_T, np.full(n_steps + 1, np.inf)
        for i, (damage, saved) in enumerate(zip(damages_L, steps_L, strict=True)):
            shift = min(int(saved), n_steps + 1)
            with_T = np.concatenate([np.full(shift, before_T[0]), before_T[: n_steps + 1 - shift]]) + damage
            is_less_T = with_T < least_T
            least_T[is_less_T] = with_T[is_less_T]
            chosen_UT[unit, is_less_T] = i
    chosen = []
    left = n_steps
    for unit in reversed(range(len(damages))):
        chosen.append(int(chosen_UT[unit, left]))
        left = max(0, left - int(steps[unit][chosen[-1]]))
    return chosen[::-1]


def _least_levels(steps_L: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the first choice, and of every one that saves more steps than the one before."""
    return np.concatenate([[0], 1 + np.flatnonzero(np.diff(steps_L) > 0)])
