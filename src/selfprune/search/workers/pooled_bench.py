"""A bench whose measurements other processes make: of this machine, or of Ray."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from selfprune.allocations.unit import Allocation
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.levels.level_store import LevelStore
from selfprune.search.bench import Bench, sum_of_parts
from selfprune.search.search_config import PoolKind
from selfprune.search.workers.executors import check_pool, start_processes
from selfprune.search.workers.workers import Key, Task, Workers

_bench: Bench | None = None
"""The bench of a process of the pool."""


@dataclass(frozen=True)
class PooledBench(Bench):
    """A bench whose measurements are made by other processes.

    Attributes:
        workers: they.
        parts: what was expected -> the tasks that it was split into.
    """

    workers: Workers
    parts: dict[Key, list[Task]] = field(default_factory=dict)

    def expect_scores(self, work: Sequence[tuple[Allocation, Sequence[int]]]) -> None:
        """Deals out as many windows to every process, neighbours to the same one, since those share the most blocks."""
        share = -(-sum(len(windows) for _, windows in work) // self.workers.n)
        groups: list[list[Task]] = [[]]
        n_left = share
        for allocation, windows in work:
            parts, start = [], 0
            while start < len(windows):
                # a batch of windows is not split
                size = min(len(windows) - start, max(n_left, self.evaluator.batch_size))
                parts.append(self._scoring(allocation, windows[start : start + size]))
                groups[-1].append(parts[-1])
                start, n_left = start + size, n_left - size
                if n_left <= 0:
                    groups.append([])
                    n_left = share
            self.parts[self._scoring(allocation, windows).key] = parts
        self.workers.ask(groups)

    def expect_falls(self, work: Sequence[tuple[Allocation, Allocation]], windows: Sequence[int]) -> None:
        """Hands every backward pass to a process."""
        self.workers.ask([[task] for allocation, denser in work for task in self._falling(allocation, denser, windows)])

    def scores(self, allocation: Allocation, windows: Sequence[int]) -> list[float]:
        """See `Bench`."""
        whole = self._scoring(allocation, windows)
        return [score for part in self.parts.pop(whole.key, [whole]) for score in self.workers.result(part)]

    def falls(self, allocation: Allocation, denser: Allocation, windows: Sequence[int]) -> dict[str, float]:
        """See `Bench`."""
        tasks = self._falling(allocation, denser, windows)
        self.workers.ask([[task] for task in tasks])
        return sum_of_parts([self.workers.result(task) for task in tasks])

    def release(self) -> None:
        """Ends the processes, too."""
        self.workers.end()
        self.parts.clear()
        super().release()

    def _scoring(self, allocation: Allocation, windows: Sequence[int]) -> Task:
        return Task(("scores", self.grid.genome(allocation), *windows), "scores", (allocation, list(windows)))

    def _falling(self, allocation: Allocation, denser: Allocation, windows: Sequence[int]) -> list[Task]:
        key = "falls", self.grid.genome(allocation), self.grid.genome(denser), len(windows)
        return [
            Task((*key, *part), "part_of_falls", (allocation, denser, list(part), len(windows)))
            for part in self.gradient_passes(windows)
        ]


def open_bench(store: LevelStore, evaluator: WindowEvaluator, n_workers: int, pool: PoolKind = PoolKind.PROCESSES) -> Bench:
    """Where a search measures: here, or in processes that are started when they are first asked.

    Args:
        store: the levels.
        evaluator: of the search windows.
        n_workers: processes; 1 for this one alone.
        pool: what processes.

    Raises:
        ConfigError: when several processes are asked for where there can be none.
    """
    bench, device = Bench(store, evaluator), store.loaded.device
    check_pool(n_workers, pool, device)
    if n_workers == 1:
        return bench
    start = partial(start_processes, n_workers, pool, device, _begin, (bench, n_workers))
    return PooledBench(store, evaluator, Workers(n_workers, start, measure))


def _begin(bench: Bench, n_workers: int) -> None:
    """Readies a process that has a bench of its own."""
    global _bench
    bench.store.share(n_workers)
    _bench = bench


def measure(calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
    """What the bench of this process measures: for each call the name of its method, and arguments."""
    assert _bench is not None
    return [getattr(_bench, method)(*arguments) for method, arguments in calls]
