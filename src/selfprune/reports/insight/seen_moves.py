"""What the gradients of a search said of every unit, read back from the run's journal.

A look at an allocation gives, to first order, the fall of the score for every level of a unit that returns, and the rise for
every level that goes (`search/gradient_values.py`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfprune.allocations.candidate import Candidate
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation
from selfprune.search.scoring import digest


@dataclass(frozen=True)
class SeenMoves:
    """The values of moves at one allocation, as a journal has them.

    Attributes:
        restoring: unit -> fall of the score per level that returns.
        removing: unit -> rise of the score per level that goes.
    """

    restoring: dict[str, float]
    removing: dict[str, float]

    def foretold(self, before: Allocation, after: Allocation, grid: LevelGrid) -> float:
        """The change of the score on the way from one allocation to another; not finite where a unit's value is unknown."""
        change = 0.0
        for name, levels in grid.levels.items():
            n_levels = (after[name] - before[name]) / levels.step
            if n_levels:
                change += n_levels * (self.removing if n_levels > 0 else self.restoring).get(name, math.nan)
        return change

    def costs_per_weight(self, grid: LevelGrid) -> dict[str, float]:
        """Unit -> the rise of the score per weight that goes; units whose rise is not known are left out."""
        return {
            unit.name: self.removing[unit.name] / (grid.levels[unit.name].step * unit.weights_per_item)
            for unit in grid.units
            if math.isfinite(self.removing.get(unit.name, math.nan))
        }


@dataclass(frozen=True)
class Foretold:
    """A candidate whose parent was looked at.

    Attributes:
        candidate: the child.
        parent: its first parent.
        at: the digest of the parent's allocation.
        change: of the score from parent to child, as the gradients at the parent foretold it.
    """

    candidate: Candidate
    parent: Candidate
    at: str
    change: float


def read_moves(journal: Path) -> dict[str, SeenMoves]:
    """Digest of an allocation -> the last values of moves that were taken there, in the order of the search.

    Args:
        journal: `evaluations.jsonl` of the run.
    """
    found: dict[str, SeenMoves] = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
        record: dict[str, Any] = json.loads(line) if '"gradients"' in line else {}
        if "gradients" in record:
            found.pop(record["gradients"], None)
            found[record["gradients"]] = SeenMoves(record["restoring"], record["removing"])
    return found


def seen_at(moves: dict[str, SeenMoves], allocation: Allocation, grid: LevelGrid) -> SeenMoves | None:
    """The values of moves at an allocation, or else where they were taken last; None where they never were.

    Args:
        moves: as of `read_moves`.
        allocation: where they are wanted.
        grid: its units.
    """
    return moves.get(digest(allocation, grid)) or next(reversed(moves.values()), None)


def foretold_changes(moves: dict[str, SeenMoves], candidates: Sequence[Candidate], grid: LevelGrid) -> list[Foretold]:
    """The candidates that have an allocation and a parent at which gradients were taken.

    Args:
        moves: as of `read_moves`.
        candidates: the archive.
        grid: its units.
    """
    born = {candidate.id: candidate for candidate in candidates}
    found = []
    for candidate in candidates:
        parent = next((born[i] for i in candidate.proposal.parents if i in born), None)
        if parent is None or candidate.proposal.allocation is None or candidate.is_champion_again:
            continue
        at = digest(parent.allocation, grid)
        if at in moves and math.isfinite(change := moves[at].foretold(parent.allocation, candidate.allocation, grid)):
            found.append(Foretold(candidate, parent, at, change))
    return found
