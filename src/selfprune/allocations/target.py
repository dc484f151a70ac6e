"""A budget on one level grid, in exact whole numbers of what it measures."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from selfprune.allocations.budget import IN_WEIGHTS, MEASURE_ANEW, NO_CONTEXT, Budget, ContextCosts, Measure, whole_target
from selfprune.allocations.latency_table import LatencyTable
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.levels import Levels
from selfprune.allocations.projection import project
from selfprune.allocations.unit import Allocation, Unit
from selfprune.errors import ConfigError

PER_SECOND = 10**12
"""Latencies are counted in whole picoseconds."""
HIGHER = "raise search.max_sparsity"
REMEDIES = {
    Measure.PARAMETERS: f"{HIGHER}, or {IN_WEIGHTS}",
    Measure.MEMORY: f"{HIGHER}, or {IN_WEIGHTS}",
    Measure.LATENCY: f"{HIGHER}, or {MEASURE_ANEW}",
}


@dataclass(frozen=True)
class Target:
    """What an allocation must save.

    Attributes:
        n_saved: what it must save at least.
        levels: unit name -> the levels that save more than the one below, and what they save.
        n_weights: weights that the uniform allocation removes to save that much, whatever the grid.
        n_all: what there is to save in the dense model, of which `budget.sparsity` is a share.
        ties: groups of units that are always at the same step of their levels; none by default.
    """

    n_saved: int
    levels: Mapping[str, Levels]
    n_weights: int
    n_all: int
    ties: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def in_weights(cls, grid: LevelGrid, n_weights: int) -> "Target":
        """A number of weights to remove.

        Args:
            grid: the allowed levels.
            n_weights: how many.
        """
        return cls(n_weights, grid.levels, n_weights, grid.n_weights())

    @classmethod
    def of(
        cls,
        budget: Budget,
        grid: LevelGrid,
        n_parameters: int,
        token_share: Callable[[Unit], Fraction],
        costs: ContextCosts = NO_CONTEXT,
    ) -> "Target":
        """The target of a budget.

        Args:
            budget: what must be saved.
            grid: the allowed levels.
            n_parameters: of the whole model, tied ones once.
            token_share: the share of tokens that reaches a unit; asked for FLOPS only.
            costs: of the budget's context.

        Raises:
            ConfigError: when the grid does not reach it, or the latency table does not fit the units.
        """
        if budget.measure in (Measure.WEIGHTS, Measure.PARAMETERS):
            levels, n_all = grid.levels, grid.n_weights() if budget.measure is Measure.WEIGHTS else n_parameters
        elif budget.measure is Measure.FLOPS:
            levels, n_all = _operations(grid, token_share, costs)
        elif budget.measure is Measure.MEMORY:
            levels = {unit.name: _numbers(unit, grid.levels[unit.name], costs, budget.batch_size) for unit in grid.units}
            n_all = n_parameters + budget.batch_size * costs.n_cached
        else:
            table = budget.table()
            table.check(grid.units)
            levels = {unit.name: _picoseconds(unit, grid.levels[unit.name], table) for unit in grid.units}
            n_all = sum(round(PER_SECOND * table.seconds(unit, 0.0)) for unit in grid.units)
        n_saved = whole_target(budget.share(grid.units), n_all)
        reachable = sum(of_unit.saved[-1] for of_unit in levels.values())
        if n_saved > reachable:
            raise budget.refusal(reachable / n_all, REMEDIES.get(budget.measure, HIGHER))
        if levels is grid.levels:
            return cls(n_saved, levels, n_saved, n_all)
        return cls(n_saved, levels, grid.n_removed_weights(budget.uniform(grid.units, n_parameters, costs)), n_all)

    def project(self, sparsities: Mapping[str, float]) -> Allocation:
        """The allocation on the budget nearest to these sparsities; of tied units, to their mean."""
        if not self.ties:
            return project(sparsities, self.levels, self.n_saved)
        tied = {group[0]: _tied([self.levels[name] for name in group]) for group in self.ties}
        wishes = {group[0]: math.fsum(sparsities[name] for name in group) / len(group) for group in self.ties}
        steps = project(wishes, tied, self.n_saved)
        return {name: self.levels[name].items[steps[group[0]]] for group in self.ties for name in group}

    def tie(self, units: Sequence[Unit], by_block: bool) -> "Target":
        """The same target, with units tied so that every block has one width, or is whole or gone.

        Args:
            units: of the grid.
            by_block: whether attention and FFN of a block go together; else those of a kind go alike in all blocks.

        Raises:
            ConfigError: when units that would be tied have other numbers of levels.
        """
        groups: dict[object, list[str]] = {}
        for unit in units:
            groups.setdefault(unit.block if by_block else unit.item, []).append(unit.name)
        for names in groups.values():
            if len({(self.levels[name].n_steps, by_block or self.levels[name].n_items) for name in names}) > 1:
                raise ConfigError(
                    f"search.plain=true gives {', '.join(names[:3])} and so on one level, but they have other widths already, or "
                    "other levels; leave it out"
                )
        return replace(self, ties=tuple(tuple(names) for names in groups.values()))

    def is_met(self, allocation: Allocation) -> bool:
        """Whether an allocation saves enough."""
        return self.saved(allocation) >= self.n_saved

    def share(self, allocation: Allocation) -> float:
        """The share of what is measured that an allocation saves."""
        return self.saved(allocation) / self.n_all

    def saved(self, allocation: Allocation) -> int:
        """What an allocation saves."""
        return sum(self.levels[name].saved_at(level) for name, level in allocation.items())


def _tied(of_units: Sequence[Levels]) -> Levels:
    """The steps that units take together, and what these save."""
    n_steps = of_units[0].n_steps
    return Levels(n_steps, range(n_steps + 1), tuple(sum(levels.saved[i] for levels in of_units) for i in range(n_steps + 1)))


def _numbers(unit: Unit, levels: Levels, costs: ContextCosts, batch_size: int) -> Levels:
    """The levels of a unit by the parameters, keys and values that they save."""
    return levels.priced(unit.weights_per_item + batch_size * costs.cached_per_item.get(unit.name, 0))


def _operations(grid: LevelGrid, token_share: Callable[[Unit], Fraction], costs: ContextCosts) -> tuple[dict[str, Levels], int]:
    """What levels save in multiplications and additions, and how many there are."""
    shares = {unit.name: token_share(unit) for unit in grid.units}
    # so many tokens are counted that every share of them is a whole number
    n_tokens = math.lcm(*(share.denominator for share in shares.values()))
    of_one = {unit.name: 2 * unit.weights_per_item + costs.scored_per_item.get(unit.name, 0) for unit in grid.units}
    per_item = {unit.name: of_one[unit.name] * int(n_tokens * shares[unit.name]) for unit in grid.units}
    levels = {name: of_unit.priced(per_item[name]) for name, of_unit in grid.levels.items()}
    return levels, sum(unit.n_items * per_item[unit.name] for unit in grid.units)


def _picoseconds(unit: Unit, levels: Levels, table: LatencyTable) -> Levels:
    """The levels of a unit by the time that they save."""
    dense = round(PER_SECOND * table.seconds(unit, 0.0))
    return levels.useful([dense - round(PER_SECOND * table.seconds(unit, level / unit.n_items)) for level in levels.items])
