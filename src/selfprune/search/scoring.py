"""Measures allocations at a bench, adds up the seconds, and remembers in the journal."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from typing_extensions import TypedDict

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation
from selfprune.search.bench import Bench
from selfprune.storage.journal import Journal
from selfprune.storage.recorded_files import Score, Seconds


class Timed(TypedDict):
    """What the journal keeps of everything that a scorer measures: the seconds that it took."""

    seconds: Seconds


class WindowScores(Timed):
    """What the journal keeps of a measurement: the scores of its windows, in order."""

    window_scores: list[Score]


class Falls(Timed):
    """What the journal keeps of a gradient: unit name -> fall of the score per level, for either direction."""

    restoring: dict[str, Score]
    removing: dict[str, Score]


Record = TypeVar("Record", bound=Timed)


@dataclass
class Scorer:
    """Scores allocations and values moves; what a resumed run had measured is read back.

    Attributes:
        bench: what measures.
        journal: what remembers.
        seconds: spent on evaluation and gradients, those of a resumed run's first part included.
        last: the allocation that was scored last, whether measured or read back.

    Example:
        >>> Scorer(bench, journal).score("main", 0, allocation, windows=[0, 1])
        {0: 0.31, 1: 0.28}
    """

    bench: Bench
    journal: Journal
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.last: Allocation = dict(self.bench.store.allocation)

    @property
    def grid(self) -> LevelGrid:
        """Units and their levels."""
        return self.bench.grid

    @property
    def n_windows(self) -> int:
        """Windows of the search split."""
        return self.bench.n_windows

    @property
    def n_tokens_per_window(self) -> int:
        """Tokens of every window."""
        return self.bench.n_tokens_per_window

    def expect(self, work: Sequence[tuple[Allocation, Sequence[int]]]) -> None:
        """Says what will be scored next, in this order, so that several processes may begin; what is recorded is left out."""
        self.bench.expect_scores(work[self.journal.n_recorded - self.journal.n_recalled :])

    def score(self, search: str, candidate: int, allocation: Allocation, windows: Sequence[int]) -> dict[int, float]:
        """Window -> its score.

        Args:
            search: the search that the candidate belongs to.
            candidate: its id.
            allocation: its levels.
            windows: which windows, by number.
        """
        key = {"search": search, "candidate": candidate, "allocation": digest(allocation, self.grid), "windows": list(windows)}
        scores = self.recall(key, allocation, windows)
        self.last = allocation
        return dict(zip(windows, scores, strict=True))

    def recall(self, key: dict[str, Any], allocation: Allocation, windows: Sequence[int]) -> list[float]:
        """The scores of an allocation as the journal has them under a key, or else measured.

        Args:
            key: of the record.
            allocation: what is measured.
            windows: on which windows.
        """
        n_windows = len(windows)

        def fault(record: WindowScores) -> str:
            n_found = len(record["window_scores"])
            return "" if n_found == n_windows else f"it should hold the scores of {n_windows} windows, but holds {n_found}"

        def measure() -> dict[str, Any]:
            return {"window_scores": self.bench.scores(allocation, windows)}

        return self._timed(key, measure, WindowScores, fault)["window_scores"]

    def falls(self, allocation: Allocation, bracket: float, windows: Sequence[int]) -> Falls:
        """What the levels around an allocation are worth, by gradients.

        For removals the first order at the allocation itself is wrong, because removed weights carry curvature; so they are
        valued as restorations, at the model in which every unit lost as many levels more.

        Args:
            allocation: where.
            bracket: sparsity of a unit by which it is moved either way, at least one level.
            windows: on which windows.
        """
        units = {unit.name for unit in self.grid.units}

        def fault(record: Falls) -> str:
            strange = sorted((record["restoring"].keys() | record["removing"].keys()) - units)
            return f"{strange[0]!r} is no unit of the model" if strange else ""

        def measure() -> dict[str, Any]:
            denser, sparser = self.grid.bracket(allocation, bracket)
            self.bench.expect_falls([(allocation, denser), (sparser, allocation)], windows)
            restoring = self.bench.falls(allocation, denser, windows)
            return {"restoring": restoring, "removing": self.bench.falls(sparser, allocation, windows)}

        key = {"gradients": digest(allocation, self.grid), "bracket": bracket, "windows": list(windows)}
        return self._timed(key, measure, Falls, fault)

    def _timed(
        self, key: dict[str, Any], measure: Callable[[], dict[str, Any]], kind: type[Record], fault: Callable[[Record], str]
    ) -> Record:
        """The record of a key, recalled or measured now, whose seconds are added up."""

        def measure_timed() -> dict[str, Any]:
            began = time.perf_counter()
            measured = measure()
            return {**measured, "seconds": round(time.perf_counter() - began, 6)}

        record = self.journal.once(key, measure_timed, kind, fault)
        self.seconds += record["seconds"]
        return record


def digest(allocation: Allocation, grid: LevelGrid) -> str:
    """A short name of an allocation, by which a record tells whether it is of the same."""
    return hashlib.sha256(repr(list(grid.genome(allocation))).encode()).hexdigest()[:16]
