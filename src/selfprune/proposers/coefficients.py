"""An allocation in few numbers: an offset and a slope over depth per kind, and an offset of the first and of the last block.

A unit's sparsity is S + s·(o_k + t_k·(2x − 1) + e), for its kind k and the depth x of its block, from 0 to 1; e is the offset of
the first or last block alone, and s, the spread, scales how far all units lie from the target S. So a model has 2K + 3
coefficients (17 for Llama), however deep it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from selfprune.allocations.unit import Allocation
from selfprune.proposers.unit_places import UnitPlaces

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

    def expand(self, places: UnitPlaces) -> dict[str, float]:
        """Unit name -> the sparsity that these coefficients wish."""
        n_blocks = len(places.blocks)
        edges = [0.0] * n_blocks
        edges[0] += self.first
        edges[-1] += self.last
        scale = self.spread / 100 / 100
        return {
            unit.name: places.space.target_sparsity
            + scale
            * (
                self.offset.get(unit.kind, 0.0)
                + self.slope.get(unit.kind, 0.0) * _depth(places.position[unit.block], n_blocks)
                + edges[places.position[unit.block]]
            )
            for unit in places.space.grid.units
        }


def fit(places: UnitPlaces, allocation: Allocation) -> Coefficients:
    """The coefficients nearest to an allocation by least squares, every weight counting alike."""
    units, kinds, n_blocks = places.space.grid.units, places.kinds, len(places.blocks)
    sparsities = places.space.grid.sparsities(allocation)
    rows, wishes = [], []
    for unit in units:
        position = places.position[unit.block]
        is_kind = [float(unit.kind == kind) for kind in kinds]
        slopes = [x * _depth(position, n_blocks) for x in is_kind]
        rows.append([*is_kind, *slopes, float(position == 0), float(position == n_blocks - 1)])
        wishes.append(100 * (sparsities[unit.name] - places.space.target_sparsity))
    weights = np.sqrt([unit.n_weights for unit in units])
    found, *_ = np.linalg.lstsq(np.array(rows) * weights[:, None], np.array(wishes) * weights, rcond=None)
    numbers = [min(max(float(x), -MAX_OFFSET), MAX_OFFSET) for x in found]
    n_kinds = len(kinds)
    offset, slope = dict(zip(kinds, numbers[:n_kinds], strict=True)), dict(zip(kinds, numbers[n_kinds:-2], strict=True))
    return Coefficients(offset, slope, numbers[-2], numbers[-1])


def _depth(position: int, n_blocks: int) -> float:
    """From -1 in the first block to 1 in the last; a single block has no depth."""
    return 2 * position / (n_blocks - 1) - 1 if n_blocks > 1 else 0.0
