"""The units by kind and by block, as a language model reads about them."""

import math
from collections.abc import Mapping, Sequence

from selfprune.allocations.unit import Allocation, Item, Unit, n_weights
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.prompted.replies import MAX_PERCENT, ReplyError, parse_kind
from selfprune.proposers.unit_places import UnitPlaces
from selfprune.proposers.unit_values import UnitValues

WHAT_GOES = {Item.WEIGHT: "", Item.HEAD_GROUP: " (heads)", Item.CHANNEL: " (channels)", Item.EXPERT: " (experts)"}
"""What a kind is told to lose, where it is not single weights."""


class UnitView(UnitPlaces):
    """The units of a search space by kind and by block, and the words for them.

    A unit is called by the position of its block among the blocks that have units, and by its kind, as in `3 q`.

    Args:
        space: the search space.

    Attributes:
        short: kind -> the shortest name that means it; small tokenizers need many tokens for a name.

    Example:
        >>> UnitView(space).label(unit)
        '3 q'
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.short = {kind: _shortest_name(kind, self.kinds) for kind in self.kinds}
        self._of_kind = {kind: [unit for unit in space.grid.units if unit.kind == kind] for kind in self.kinds}
        self._of_block = [[unit for unit in space.grid.units if unit.block == block] for block in self.blocks]
        self._unit = {self.place(unit): unit for unit in space.grid.units}

    def place(self, unit: Unit) -> tuple[int, str]:
        """Block position and kind."""
        return self.position[unit.block], unit.kind

    def label(self, unit: Unit) -> str:
        """What a unit is called."""
        return f"{self.position[unit.block]} {self.short[unit.kind]}"

    def find(self, position: int, kind: str) -> Unit:
        """The unit of a kind in a block.

        Raises:
            ReplyError: when there is none.
        """
        if (position, kind) not in self._unit:
            raise ReplyError(f"block {position} has no {self.short[kind]}; there are blocks 0 to {len(self.blocks) - 1}")
        return self._unit[position, kind]

    def kind_rows(self, worth: UnitValues | None) -> list[str]:
        """One row per kind: name, share of all weights, sensitivity from 0 to 99 if known."""
        shares = [100 * n_weights(units) / self.space.grid.n_weights() for units in self._of_kind.values()]
        sensitivities = self._sensitivities(list(self._of_kind.values()), worth)
        names = [f"{self.short[kind]}{WHAT_GOES[units[0].item]}" for kind, units in self._of_kind.items()]
        rows = zip(names, shares, sensitivities, strict=True)
        return [f"{name} {share:.0f}% {sensitivity}".rstrip() for name, share, sensitivity in rows]

    def block_sensitivities(self, worth: UnitValues | None) -> str:
        """One number per block, from 0 to 99."""
        return " ".join(self._sensitivities(self._of_block, worth)) if worth else "not measured"

    def promising(self, allocation: Allocation, worth: UnitValues | None) -> tuple[list[Unit], list[Unit]]:
        """The units that may be pruned less, and those that may be pruned more, each the most promising first.

        At the best allocation a weight is worth the same everywhere, so that those promise most that are worth far more or less
        than the mean, as measured by their noise, which falls with the root of their size. Where nothing is known of their
        worth, those that are pruned most are spared first.
        """
        grid = self.space.grid
        sparsities = grid.sparsities(allocation)
        gains, costs = (worth.gains, worth.costs) if worth else (sparsities, sparsities)
        mean = sum(worth.mean(unit) * unit.n_weights for unit in grid.units) / grid.n_weights() if worth else 0.0
        spared = [unit for unit in grid.units if allocation[unit.name] > 0]
        pruned = [unit for unit in grid.units if allocation[unit.name] < grid.levels[unit.name].highest]

        def excess(by_name: Mapping[str, float], unit: Unit, unknown: float) -> float:
            return (by_name.get(unit.name, unknown) - mean) * (math.sqrt(unit.n_weights) if worth else 1.0)

        return (
            sorted(spared, key=lambda unit: excess(gains, unit, -math.inf), reverse=True),
            sorted(pruned, key=lambda unit: excess(costs, unit, math.inf)),
        )

    def unit_rows(self, units: Sequence[Unit], allocation: Allocation, worth: UnitValues | None) -> list[str]:
        """Per unit a row: its label, percent now, and what a weight that returns gains and one that goes costs, from 0 to 99."""
        rows = [f"{self.label(unit)} {self._percent([unit], allocation)}" for unit in units]
        if not worth:
            return rows
        highest = max((worth.gains.get(unit.name, 0.0) for unit in units), default=0.0)
        columns = [
            [_scaled(by_name.get(unit.name, unknown), highest) for unit in units]
            for by_name, unknown in ((worth.gains, 0.0), (worth.costs, math.inf))
        ]
        return [" ".join(row) for row in zip(rows, *columns, strict=True)]

    def _percent(self, units: Sequence[Unit], allocation: Allocation) -> int:
        return min(MAX_PERCENT, round(100 * self.space.grid.sparsity(allocation, units)))

    def _sensitivities(self, groups: Sequence[Sequence[Unit]], worth: UnitValues | None) -> list[str]:
        """The groups' mean sensitivities per weight from 0 to 99; empty texts where none is known."""
        if not worth:
            return [""] * len(groups)
        means = [sum(worth.mean(unit) * unit.n_weights for unit in units) / n_weights(units) for units in groups]
        return [_scaled(mean, max(means)) for mean in means]


def _scaled(value: float, highest: float) -> str:
    if math.isnan(value) or value <= 0 or highest <= 0:
        return "0"
    return str(round(MAX_PERCENT * min(1.0, value / highest)))


def _shortest_name(kind: str, kinds: Sequence[str]) -> str:
    """The shortest name that `parse_kind` reads as this kind."""
    parts = kind.split(".")
    ends = [".".join(parts[-n_parts:]) for n_parts in range(1, len(parts) + 1)]
    for name in [short for end in ends for short in (end.removesuffix("_proj"), end)]:
        try:
            if parse_kind(name, kinds) == kind:
                return name
        except ReplyError:
            continue
    return kind
