"""What the layers tell: what was measured of units and blocks, what the search removed of them, and which of these go together.

Rank correlations are Spearman's, over units or blocks of which both numbers are known.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from scipy.stats import spearmanr

from selfprune.allocations.candidate import Candidate
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation
from selfprune.reports.conclusions import TRAINED
from selfprune.reports.insight.seen_moves import SeenMoves, foretold_changes, seen_at

MIN_PAIRS = 4
"""Pairs below which no correlation is told."""


def layer_record(
    grid: LevelGrid,
    winner: Allocation,
    block_numbers: Mapping[str, Mapping[int, float]],
    sensitivities: Mapping[str, float],
    moves: dict[str, SeenMoves],
    candidates: Sequence[Candidate],
) -> dict[str, Any]:
    """What the report keeps of units and blocks, for JSON.

    Args:
        grid: the units.
        winner: its allocation.
        block_numbers: what was measured -> block -> number.
        sensitivities: unit -> what pruning it alone cost; empty where that was not measured.
        moves: what gradients said, as of `read_moves`.
        candidates: of the main search.
    """
    removed = grid.sparsities(winner)
    known = seen_at(moves, winner, grid)
    of_units = {"removed": removed, "cost": known.costs_per_weight(grid) if known else {}, "sensitivity": dict(sensitivities)}
    of_units = {name: finite for name, numbers in of_units.items() if (finite := _finite(numbers))}
    of_blocks = {"removed": _shares_of_blocks(grid, winner)} | {name: _finite(numbers) for name, numbers in block_numbers.items()}
    return {
        "units": of_units,
        "blocks": {name: {str(block): number for block, number in numbers.items()} for name, numbers in of_blocks.items()},
        "correlations": [*_correlations("units", of_units), *_correlations("blocks", of_blocks)],
        "agreement": _agreement(grid, moves, candidates),
    }


def moved_by_training(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """`moved`, each block -> how far training moved the winner's weights there, relative to their norm; nothing without one.

    Args:
        rows: of the report.
    """
    training: Mapping[str, Any] = next((row["training"] for row in rows if row["name"] == "winner" + TRAINED), {})
    moved = {int(block): float(number) for block, number in training.get("moved", {}).items()}
    return {"moved": moved} if moved else {}


def rank_correlation(one: Mapping[Any, float], other: Mapping[Any, float]) -> float | None:
    """Spearman's, over what both know; None for fewer than four pairs, or where all of one are alike."""
    shared = [key for key in one if key in other]
    xs, ys = [one[key] for key in shared], [other[key] for key in shared]
    if len(shared) < MIN_PAIRS or len(set(xs)) == 1 or len(set(ys)) == 1:
        return None
    return float(spearmanr(xs, ys).statistic)


def _correlations(of: str, numbers: Mapping[str, Mapping[Any, float]]) -> list[dict[str, Any]]:
    pairs = [(a, b, rank_correlation(numbers[a], numbers[b])) for a, b in combinations(numbers, 2)]
    return [{"of": of, "one": a, "other": b, "rho": round(rho, 6)} for a, b, rho in pairs if rho is not None]


def _agreement(grid: LevelGrid, moves: dict[str, SeenMoves], candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Of every proposer: how its steps from a parent fit what the gradients there said of single units.

    A step fits where more goes of units that cost little: `rho` is the rank correlation, over the units that a step changes,
    between the weights that go and the fall per weight that gradients foretell of their going.
    """
    steps: dict[str, list[tuple[float, float | None]]] = {}
    costs_at = {at: seen.costs_per_weight(grid) for at, seen in moves.items()}
    for foretold in foretold_changes(moves, candidates, grid):
        before, after = foretold.parent.allocation, foretold.candidate.allocation
        gone = {unit.name: (after[unit.name] - before[unit.name]) * unit.weights_per_item for unit in grid.units}
        changed = {name: float(n) for name, n in gone.items() if n}
        worth = {name: -cost for name, cost in costs_at[foretold.at].items()}
        steps.setdefault(foretold.candidate.proposal.proposer, []).append((foretold.change, rank_correlation(changed, worth)))
    found = []
    for proposer, taken in steps.items():
        rhos = [rho for _, rho in taken if rho is not None]
        fell = sum(change < 0 for change, _ in taken)
        told = {"rho": round(statistics.median(rhos), 6)} if rhos else {}
        found.append({"proposer": proposer, "n": len(taken), "n_foretold_to_fall": fell, **told})
    return found


def _shares_of_blocks(grid: LevelGrid, allocation: Allocation) -> dict[int, float]:
    """Block -> the share of its units' weights that went."""
    gone: dict[int, int] = {}
    whole: dict[int, int] = {}
    for unit in grid.units:
        gone[unit.block] = gone.get(unit.block, 0) + allocation[unit.name] * unit.weights_per_item
        whole[unit.block] = whole.get(unit.block, 0) + unit.n_items * unit.weights_per_item
    return {block: gone[block] / whole[block] for block in gone}


def _finite(numbers: Mapping[Any, float]) -> dict[Any, float]:
    return {key: float(number) for key, number in numbers.items() if math.isfinite(number)}
