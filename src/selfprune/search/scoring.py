"""Measures allocations on the search windows: loads the levels, runs the model, remembers in the journal."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import TypedDict

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.levels.level_store import LevelStore
from selfprune.storage.journal import Journal
from selfprune.storage.recorded_files import Score, Seconds


class WindowScores(TypedDict):
    """What the journal keeps of a measurement: the scores of its windows, in order."""

    window_scores: list[Score]
    seconds: Seconds


@dataclass
class Scorer:
    """Scores allocations; what a resumed run had scored is read back.

    Attributes:
        seconds: spent on evaluation and gradients, those of a resumed run's first part included.
        last: the allocation that was scored last, whether measured or read back.

    Example:
        >>> Scorer(store, evaluator, journal).score("main", 0, allocation, windows=[0, 1])
        {0: 0.31, 1: 0.28}
    """

    store: LevelStore
    evaluator: WindowEvaluator
    journal: Journal
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.last: Allocation = dict(self.store.allocation)

    @property
    def grid(self) -> LevelGrid:
        """The levels of the store."""
        return self.store.grid

    @property
    def n_windows(self) -> int:
        """Windows of the search split."""
        return self.evaluator.n_windows

    @property
    def n_tokens_per_window(self) -> int:
        """Tokens of every window."""
        return self.evaluator.n_tokens_per_window

    def score(self, search: str, candidate: int, allocation: Allocation, windows: Sequence[int]) -> dict[int, float]:
        """Window -> its score.

        Args:
            search: the search that the candidate belongs to.
            candidate: its id.
            allocation: its levels.
            windows: which windows, by number.
        """
        key = {"search": search, "candidate": candidate, "allocation": digest(allocation, self.grid), "windows": list(windows)}
        record = self.recall(key, allocation, windows)
        self.seconds += record["seconds"]
        self.last = allocation
        return dict(zip(windows, record["window_scores"], strict=True))

    def recall(self, key: dict[str, Any], allocation: Allocation, windows: Sequence[int]) -> WindowScores:
        """What the journal has under a key, or else a new measurement.

        Args:
            key: of the record.
            allocation: what is measured.
            windows: on which windows.
        """
        n_windows = len(windows)

        def fault(record: WindowScores) -> str:
            n_found = len(record["window_scores"])
            return "" if n_found == n_windows else f"it should hold the scores of {n_windows} windows, but holds {n_found}"

        return self.journal.once(key, lambda: self.measure(allocation, windows), WindowScores, fault)

    def measure(self, allocation: Allocation, windows: Sequence[int]) -> dict[str, Any]:
        """Scores of some windows, and the seconds that they took."""
        self.store.load(allocation)
        evaluation = self.evaluator.evaluate(block_versions(allocation, self.grid), windows)
        return {"window_scores": next(iter(evaluation.metrics.values())), "seconds": round(evaluation.seconds, 6)}


def digest(allocation: Allocation, grid: LevelGrid) -> str:
    """A short name of an allocation, by which a record tells whether it is of the same."""
    return hashlib.sha256(repr(list(grid.genome(allocation))).encode()).hexdigest()[:16]


def block_versions(allocation: Allocation, grid: LevelGrid) -> list[Hashable]:
    """The levels of each block's units, which say when two allocations share a block."""
    blocks: dict[int, list[int]] = {}
    for unit in grid.units:
        blocks.setdefault(unit.block, []).append(allocation[unit.name])
    return [tuple(blocks.get(block, ())) for block in range(max(blocks) + 1)]


def visiting_order(allocations: Sequence[Allocation], current: Allocation, grid: LevelGrid) -> list[int]:
    """An order that walks the tree of common prefixes depth first, beginning where the current allocation leads.

    Every node of the tree is then computed once, with the hidden states of a single path in memory.
    """
    path = block_versions(current, grid)
    versions = [block_versions(allocation, grid) for allocation in allocations]
    return sorted(range(len(versions)), key=lambda i: [(v != own, v) for v, own in zip(versions[i], path, strict=True)])
