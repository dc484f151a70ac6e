"""An allocation in few numbers: an offset and a slope over depth per kind, and an offset of the first and of the last block.

A unit's sparsity is S + s·(o_k + t_k·(2x − 1) + e), for its kind k and the depth x of its block, from 0 to 1; e is the offset of
the first or last block alone, and s, the spread, scales how far all units lie from the target S. So a model has 2K + 3
coefficients (17 for Llama), however deep it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfprune.allocations.unit import Allocation
from selfprune.proposers.prompted.replies import ReplyError, compact, object_schema, parse_json_object, parse_kind, parse_percent
from selfprune.proposers.unit_view import UnitView

MAX_OFFSET = 40
"""Bound of every coefficient either way, in percent of sparsity."""
MAX_SPREAD = 200


@dataclass(frozen=True)
class Coefficients:
    """Numbers in percent; a coefficient that is left out is zero, and the spread 100.

    Attributes:
        offset: kind -> by how much its units are pruned more than the target.
        slope: kind -> by how much more its units in the last block are pruned than those in the middle.
        first: by how much more the first block is pruned.
        last: the same of the last block.
        spread: all of these are scaled by it.
    """

    offset: Mapping[str, float] = field(default_factory=dict)
    slope: Mapping[str, float] = field(default_factory=dict)
    first: float = 0.0
    last: float = 0.0
    spread: float = 100.0

    def expand(self, view: UnitView) -> dict[str, float]:
        """Unit name -> the sparsity that these coefficients wish."""
        n_blocks = len(view.blocks)
        edges = [0.0] * n_blocks
        edges[0] += self.first
        edges[-1] += self.last
        scale = self.spread / 100 / 100
        return {
            unit.name: view.space.target_sparsity
            + scale
            * (
                self.offset.get(unit.kind, 0.0)
                + self.slope.get(unit.kind, 0.0) * _depth(view.position[unit.block], n_blocks)
                + edges[view.position[unit.block]]
            )
            for unit in view.space.grid.units
        }

    def show(self, view: UnitView) -> str:
        """The JSON by which a language model reads and writes them, in whole percents."""
        offset, slope = (
            {view.short[kind]: round(by_kind.get(kind, 0.0)) for kind in view.kinds} for by_kind in (self.offset, self.slope)
        )
        edges = {"first": round(self.first), "last": round(self.last), "spread": round(self.spread)}
        return compact({"offset": offset, "slope": slope, **edges})


def fit(view: UnitView, allocation: Allocation) -> Coefficients:
    """The coefficients nearest to an allocation by least squares, every weight counting alike."""
    units, kinds, n_blocks = view.space.grid.units, view.kinds, len(view.blocks)
    sparsities = view.space.grid.sparsities(allocation)
    rows, wishes = [], []
    for unit in units:
        position = view.position[unit.block]
        is_kind = [float(unit.kind == kind) for kind in kinds]
        slopes = [x * _depth(position, n_blocks) for x in is_kind]
        rows.append([*is_kind, *slopes, float(position == 0), float(position == n_blocks - 1)])
        wishes.append(100 * (sparsities[unit.name] - view.space.target_sparsity))
    weights = np.sqrt([unit.n_weights for unit in units])
    found, *_ = np.linalg.lstsq(np.array(rows) * weights[:, None], np.array(wishes) * weights, rcond=None)
    numbers = [min(max(float(x), -MAX_OFFSET), MAX_OFFSET) for x in found]
    n_kinds = len(kinds)
    offset, slope = dict(zip(kinds, numbers[:n_kinds], strict=True)), dict(zip(kinds, numbers[n_kinds:-2], strict=True))
    return Coefficients(offset, slope, numbers[-2], numbers[-1])


def coefficients_schema(kinds: Sequence[str]) -> dict[str, Any]:
    """JSON schema of what `parse_coefficients` reads."""
    percent = {"type": "integer", "minimum": -MAX_OFFSET, "maximum": MAX_OFFSET}
    of_kinds = object_schema(dict.fromkeys(kinds, percent))
    spread = {"type": "integer", "minimum": 0, "maximum": MAX_SPREAD}
    return object_schema({"offset": of_kinds, "slope": of_kinds, "first": percent, "last": percent, "spread": spread})


def parse_coefficients(text: str, kinds: Sequence[str], repairs: list[str]) -> Coefficients:
    """Reads `{"offset": {kind: percent}, "slope": {kind: percent}, "first": percent, "last": percent, "spread": percent}`.

    What is left out counts as zero, a spread as 100; percents are clipped.

    Args:
        text: the reply.
        kinds: the kinds that there are.
        repairs: is told what had to be mended.

    Raises:
        ReplyError: when the reply cannot be read so, or says nothing of any kind.
    """
    reply = parse_json_object(text, ("offset",))
    by_name = {name: _parse_by_kind(reply, name, kinds, repairs) for name in ("offset", "slope")}
    if not any(by_name.values()):
        raise ReplyError("offset and slope are empty")
    numbers = {}
    for name, low, high, default in (
        ("first", -MAX_OFFSET, MAX_OFFSET, 0.0),
        ("last", -MAX_OFFSET, MAX_OFFSET, 0.0),
        ("spread", 0, MAX_SPREAD, 100.0),
    ):
        if name not in reply:
            repairs.append(f"{name} left out")
        numbers[name] = parse_percent(reply.get(name, default), low, high, repairs)
    return Coefficients(by_name["offset"], by_name["slope"], **numbers)


def _parse_by_kind(reply: dict[str, Any], name: str, kinds: Sequence[str], repairs: list[str]) -> dict[str, float]:
    percents = reply.get(name, {})
    if not isinstance(percents, dict):
        raise ReplyError(f"{name} must be an object")
    if len(percents) < len(kinds):
        repairs.append(f"{name} of a kind left out")
    return {parse_kind(kind, kinds): parse_percent(value, -MAX_OFFSET, MAX_OFFSET, repairs) for kind, value in percents.items()}


def _depth(position: int, n_blocks: int) -> float:
    """From -1 in the first block to 1 in the last; a single block has no depth."""
    return 2 * position / (n_blocks - 1) - 1 if n_blocks > 1 else 0.0
