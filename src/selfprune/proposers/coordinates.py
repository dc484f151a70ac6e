"""The units by kind and by block, in few numbers, as a language model reads and writes them."""

import json
import math
from collections.abc import Sequence

from selfprune.allocation import Allocation, Unit
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.replies import MAX_PERCENT, Coordinates, Move, ReplyError, parse_kind


class UnitView:
    """The units of a search space by kind and by block, in few numbers, as a language model reads and writes them.

    Blocks are named by their position among the blocks that have units.

    Args:
        space: the search space.

    Attributes:
        kinds: the kinds in model order.
        short: kind -> the shortest name that means it; small tokenizers need many tokens for a name.
        blocks: the block indices in model order.

    Example:
        >>> UnitView(space).coordinates(allocation)
        '{"kinds":{"q":60,"up":58},"blocks":[55,61,64]}'
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.kinds = list(dict.fromkeys(unit.kind for unit in space.grid.units))
        self.short = {kind: _shortest_name(kind, self.kinds) for kind in self.kinds}
        self.blocks = sorted({unit.block for unit in space.grid.units})
        self._of_kind = {kind: [unit for unit in space.grid.units if unit.kind == kind] for kind in self.kinds}
        self._of_block = [[unit for unit in space.grid.units if unit.block == block] for block in self.blocks]
        self._position = {block: position for position, block in enumerate(self.blocks)}
        self._unit = {(self._position[unit.block], unit.kind): unit for unit in space.grid.units}

    def coordinates(self, allocation: Allocation | None) -> str:
        """The JSON by which an allocation is shown: mean percents per kind and per block; of the uniform wish for None."""
        kinds = {self.short[kind]: self._percent(units, allocation) for kind, units in self._of_kind.items()}
        return _compact({"kinds": kinds, "blocks": [self._percent(units, allocation) for units in self._of_block]})

    def expand(self, coordinates: Coordinates) -> dict[str, float]:
        """Unit name -> kind + block - target, the sparsity that these coordinates wish."""
        return {
            unit.name: (coordinates.kinds[unit.kind] + coordinates.blocks[self._position[unit.block]]) / 100
            - self.space.target_sparsity
            for unit in self.space.grid.units
        }

    def apply(self, moves: Sequence[Move], allocation: Allocation) -> dict[str, float]:
        """Unit name -> sparsity after the moves, each of at least one step and at most what both units have room for.

        Raises:
            ReplyError: when a block lacks a unit of that kind.
        """
        grid = self.space.grid
        sparsities = grid.sparsities(allocation)
        for move in moves:
            source, destination = self._find(*move.source), self._find(*move.destination)
            n_weights = move.percent / 100 * min(source.n_weights, destination.n_weights)
            n_weights = max(n_weights, grid.step_weights(source), grid.step_weights(destination))
            room = grid.max_level(destination) / destination.n_items - sparsities[destination.name]
            n_weights = min(n_weights, sparsities[source.name] * source.n_weights, room * destination.n_weights)
            sparsities[source.name] -= n_weights / source.n_weights
            sparsities[destination.name] += n_weights / destination.n_weights
        return sparsities

    def kind_rows(self) -> list[str]:
        """One row per kind: name, share of all weights, sensitivity if measured."""
        shares = [100 * _n_weights(units) / self.space.grid.n_weights() for units in self._of_kind.values()]
        scaled = self._sensitivities(list(self._of_kind.values()))
        return [
            f"{self.short[kind]} {share:.0f}% {level}".rstrip()
            for kind, share, level in zip(self.kinds, shares, scaled, strict=True)
        ]

    def block_sensitivities(self) -> str:
        """One number per block."""
        return " ".join(self._sensitivities(self._of_block)) if self.space.sensitivities else "not measured"

    def by_sensitivity(self, allocation: Allocation) -> list[Unit]:
        """The units, those first that hurt most per weight; where that is not measured, those that are pruned least."""
        sparsities = self.space.grid.sparsities(allocation)
        return sorted(self.space.grid.units, key=lambda unit: (-self._per_weight([unit]), sparsities[unit.name]))

    def unit_row(self, unit: Unit, allocation: Allocation) -> str:
        """Block, kind, sensitivity if measured, percent now."""
        highest = max(self._per_weight([other]) for other in self.space.grid.units)
        sensitivity = [_scaled(self._per_weight([unit]), highest)] if self.space.sensitivities else []
        return " ".join(
            [str(self._position[unit.block]), self.short[unit.kind], *sensitivity, f"{self._percent([unit], allocation)}%"]
        )

    def move_form(self, source: Unit, destination: Unit) -> str:
        """The JSON of one move between two units, for the prompt."""
        ends = [{"block": self._position[unit.block], "kind": self.short[unit.kind]} for unit in (source, destination)]
        return _compact({"moves": [{"from": ends[0], "to": ends[1], "percent": 10}]})

    def _find(self, position: int, kind: str) -> Unit:
        if (position, kind) not in self._unit:
            raise ReplyError(f"block {position} has no {kind}")
        return self._unit[position, kind]

    def _percent(self, units: Sequence[Unit], allocation: Allocation | None) -> int:
        if allocation is None:
            return round(100 * self.space.target_sparsity)
        n_removed = sum(allocation[unit.name] * unit.weights_per_item for unit in units)
        return min(MAX_PERCENT, round(100 * n_removed / _n_weights(units)))

    def _per_weight(self, units: Sequence[Unit]) -> float:
        """Rise of the score per weight: what counts when weights are exchanged. Noise below zero and failures count as zero."""
        rises = [self.space.sensitivities.get(unit.name, 0.0) for unit in units]
        return sum(max(0.0, rise) for rise in rises if math.isfinite(rise)) / _n_weights(units)

    def _sensitivities(self, groups: Sequence[Sequence[Unit]]) -> list[str]:
        """The groups' sensitivities from 0 to 99; empty texts where none is measured."""
        if not self.space.sensitivities:
            return [""] * len(groups)
        rises = [self._per_weight(units) for units in groups]
        return [_scaled(rise, max(rises)) for rise in rises]


def _n_weights(units: Sequence[Unit]) -> int:
    return sum(unit.n_weights for unit in units)


def _scaled(value: float, highest: float) -> str:
    return str(round(MAX_PERCENT * value / highest)) if highest > 0 else "0"


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


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
