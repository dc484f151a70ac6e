"""Races candidates: many on few windows, survivors on more, always on the same windows.

The rungs are nested: a survivor is scored only on the windows that it has not seen yet, and any two candidates of a run can
be compared in pairs on the windows that both have seen.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from selfprune.allocation import Allocation, LevelGrid
from selfprune.candidate import Candidate, Proposal, State
from selfprune.errors import ConfigError
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.journal import Journal
from selfprune.level_store import LevelStore


@dataclass
class Ladder:
    """How much is spent on whom.

    Attributes:
        n_windows: windows seen by the end of each rung, rising.
        n_survivors: candidates that go on after each rung but the last, falling.
        z_worse: a candidate whose paired difference to the best of the rung exceeds this many standard errors goes no further,
            whatever its rank.
    """

    n_windows: list[int] = field(default_factory=lambda: [4, 16, 64])
    n_survivors: list[int] = field(default_factory=lambda: [5, 2])
    z_worse: float = 3.0

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.n_windows, self.n_windows[1:], strict=False))
        if not self.n_windows or self.n_windows[0] < 1 or not rising or len(self.n_survivors) != len(self.n_windows) - 1:
            raise ConfigError(
                "search.ladder needs rising n_windows and one n_survivors fewer than rungs, "
                f"got {self.n_windows} and {self.n_survivors}; for example [4, 16, 64] and [5, 2]"
            )
        if any(n < 1 for n in self.n_survivors):
            raise ConfigError(f"search.ladder.n_survivors must be at least 1 each, got {self.n_survivors}")


@dataclass
class _Runner:
    """A candidate in the race."""

    candidate: Candidate
    scores: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)


@dataclass
class Racer:
    """Scores proposals on the search split.

    Attributes:
        seconds: spent on evaluation, those of a resumed run's first part included.

    Example:
        >>> candidates = Racer(store, evaluator, Ladder(), journal).race("main", 0, proposals)
    """

    store: LevelStore
    evaluator: WindowEvaluator
    ladder: Ladder
    journal: Journal
    seconds: float = field(default=0.0, init=False)

    def race(self, search: str, first_id: int, proposals: Sequence[Proposal], keep_all: bool = False) -> list[Candidate]:
        """Every proposal's fate, in the order of the proposals.

        Args:
            search: the search that the candidates belong to.
            first_id: id of the first.
            proposals: what to score.
            keep_all: score everyone on all windows (for yardsticks).
        """
        runners = [_Runner(_enter(search, first_id + i, proposal)) for i, proposal in enumerate(proposals)]
        start = 0
        for rung, stop in enumerate(self.ladder.n_windows):
            racing = [runner for runner in runners if runner.candidate.state is State.COMPLETE]
            for runner in sorted(racing, key=lambda r: block_versions(r.candidate.allocation, self.store.grid)):
                self._score(runner, start, stop)
            if rung < len(self.ladder.n_survivors) and not keep_all:
                self._drop(runners, self.ladder.n_survivors[rung])
            start = stop
        return [runner.candidate for runner in runners]

    def measure(self, allocation: Allocation, start: int, stop: int) -> dict[str, Any]:
        """Scores of the search windows `start` to `stop` under an allocation, and the seconds that they took."""
        self.store.load(allocation)
        evaluation = self.evaluator.evaluate(block_versions(allocation, self.store.grid), start, stop)
        return {"window_scores": next(iter(evaluation.metrics.values())), "seconds": round(evaluation.seconds, 6)}

    def _score(self, runner: _Runner, start: int, stop: int) -> None:
        candidate = runner.candidate

        key = {"search": candidate.search, "candidate": candidate.id, "start": start, "stop": stop}
        record = self.journal.once(key, lambda: self.measure(candidate.allocation, start, stop))
        runner.scores += record["window_scores"]
        self.seconds += record["seconds"]
        n_tokens = len(runner.scores) * self.evaluator.n_tokens_per_window
        seen = replace(candidate, n_windows=len(runner.scores), n_tokens=n_tokens)
        if math.isfinite(runner.mean):
            runner.candidate = replace(seen, score=runner.mean)
        else:
            runner.candidate = replace(seen, state=State.FAILED, score=None, reason="the score is not finite")

    def _drop(self, runners: list[_Runner], n_survivors: int) -> None:
        """Stops those beyond the survivors' ranks, and those clearly worse than the best."""
        ranked = sorted((r for r in runners if r.candidate.state is State.COMPLETE), key=lambda r: (r.mean, r.candidate.id))
        for rank, runner in enumerate(ranked):
            z = paired_z(runner.scores, ranked[0].scores)
            if rank >= n_survivors:
                reason = f"rank {rank + 1} of {len(ranked)} after {len(runner.scores)} windows"
            elif z > self.ladder.z_worse:
                reason = f"worse than the best by {z:.1f} standard errors after {len(runner.scores)} windows"
            else:
                continue
            runner.candidate = replace(runner.candidate, state=State.STOPPED, reason=reason)


def paired_z(scores: Sequence[float], others: Sequence[float]) -> float:
    """Mean difference of paired scores in standard errors; positive when `scores` are higher; 0 where one pair shows none."""
    differences = [a - b for a, b in zip(scores, others, strict=True)]
    if len(differences) < 2:
        return 0.0
    mean = statistics.fmean(differences)
    spread = statistics.stdev(differences)
    if spread == 0.0:
        return 0.0 if mean == 0.0 else math.copysign(math.inf, mean)
    return mean / (spread / math.sqrt(len(differences)))


def block_versions(allocation: Allocation, grid: LevelGrid) -> list[tuple[int, ...]]:
    """The levels of each block's units, which say when two allocations share a block."""
    blocks: dict[int, list[int]] = {}
    for unit in grid.units:
        blocks.setdefault(unit.block, []).append(allocation[unit.name])
    return [tuple(blocks.get(block, ())) for block in range(max(blocks) + 1)]


def _enter(search: str, candidate_id: int, proposal: Proposal) -> Candidate:
    if proposal.allocation is None:
        return Candidate(candidate_id, search, proposal, State.FAILED, reason=proposal.failure)
    return Candidate(candidate_id, search, proposal, State.COMPLETE)
