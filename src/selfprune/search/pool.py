"""Several processes at one search: each holds the model, and what a race or a gradient needs next is dealt out among them.

The processes are forked once all levels are known, so that they share the memory of the dense weights, the levels and the
windows; each has of its own the weights that it prunes, and hidden states. What they measure is the same to the bit as in one
process of one thread, and is recorded in the same order, so that the archive is the same, too.

A process that is killed ends the whole pool, as in every executor of Python; all are forked anew and do again what was asked.

Limits: of one machine, on CPU, for a process cannot be forked that has begun to use a GPU. Built levels are kept by every process
for itself, in memory alone.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import torch

from selfprune.allocations.unit import Allocation
from selfprune.errors import ConfigError, SelfpruneError
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.levels.level_store import LevelStore
from selfprune.search.bench import Bench

MAX_BROKEN = 3
"""Times in a row that processes may end before any of them has measured something."""
Key = tuple[Any, ...]
_bench: Bench | None = None
"""The bench of a process of the pool, which it has from its parent."""


@dataclass(frozen=True)
class Task:
    """Something to measure.

    Attributes:
        key: tells it from others.
        method: of `Bench`.
        arguments: of that.
    """

    key: Key
    method: str
    arguments: tuple[Any, ...]


@dataclass
class Workers:
    """The processes, and what they were asked.

    Attributes:
        bench: what they measure with.
        n: how many there are.
    """

    bench: Bench
    n: int
    _executor: ProcessPoolExecutor | None = field(default=None, init=False)
    _asked: dict[Key, tuple[Future[list[Any]], int, list[Task]]] = field(default_factory=dict, init=False)
    _n_broken: int = field(default=0, init=False)

    def ask(self, groups: Iterable[Sequence[Task]]) -> None:
        """Hands every group of tasks to one process; those that were asked before are not asked again."""
        for group in groups:
            if new := [task for task in group if task.key not in self._asked]:
                self._submit(new)

    def result(self, task: Task) -> Any:
        """What a task came to; it is asked now unless it was before.

        Raises:
            SelfpruneError: when the processes end again and again.
        """
        self.ask([[task]])
        while True:
            future, place, _ = self._asked[task.key]
            try:
                found = future.result()
            except BrokenProcessPool as error:
                self._begin_again(error)
                continue
            self._n_broken = 0
            del self._asked[task.key]
            return found[place]

    def end(self) -> None:
        """Ends the processes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        self._executor = None
        self._asked.clear()

    def _submit(self, tasks: list[Task]) -> None:
        if self._executor is None:
            fork = multiprocessing.get_context("fork")
            self._executor = ProcessPoolExecutor(self.n, fork, _begin, (self.bench, self.n))
        try:
            future = self._executor.submit(_work, [(task.method, task.arguments) for task in tasks])
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        for place, task in enumerate(tasks):
            self._asked[task.key] = future, place, tasks

    def _begin_again(self, error: BrokenProcessPool) -> None:
        """Forks the processes anew and asks once more what was not answered.

        Raises:
            SelfpruneError: when that was in vain several times.
        """
        self._n_broken += 1
        if self._n_broken > MAX_BROKEN:
            raise SelfpruneError(
                f"the {self.n} processes of search.workers ended {self._n_broken} times before one of them had measured "
                "anything, as they do where memory is short; begin the run anew with fewer search.workers, or with 1"
            ) from error
        unanswered = [[tasks[place]] for _, place, tasks in self._asked.values()]
        self.end()
        self.ask(unanswered)


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
        """Hands every gradient to a process."""
        self.workers.ask([[self._falling(allocation, denser, windows)] for allocation, denser in work])

    def scores(self, allocation: Allocation, windows: Sequence[int]) -> list[float]:
        """See `Bench`."""
        whole = self._scoring(allocation, windows)
        return [score for part in self.parts.pop(whole.key, [whole]) for score in self.workers.result(part)]

    def falls(self, allocation: Allocation, denser: Allocation, windows: Sequence[int]) -> dict[str, float]:
        """See `Bench`."""
        found: dict[str, float] = self.workers.result(self._falling(allocation, denser, windows))
        return found

    def release(self) -> None:
        """Ends the processes, too."""
        self.workers.end()
        self.parts.clear()
        super().release()

    def _scoring(self, allocation: Allocation, windows: Sequence[int]) -> Task:
        return Task(("scores", self.grid.genome(allocation), *windows), "scores", (allocation, list(windows)))

    def _falling(self, allocation: Allocation, denser: Allocation, windows: Sequence[int]) -> Task:
        genomes = self.grid.genome(allocation), self.grid.genome(denser)
        return Task(("falls", *genomes, *windows), "falls", (allocation, denser, list(windows)))


def open_bench(store: LevelStore, evaluator: WindowEvaluator, n_workers: int) -> Bench:
    """Where a search measures: here, or in processes that are forked when they are first asked.

    Args:
        store: the levels.
        evaluator: of the search windows.
        n_workers: processes; 1 for this one alone.

    Raises:
        ConfigError: when several processes are asked for where none can be forked.
    """
    bench, device = Bench(store, evaluator), store.loaded.device
    if n_workers == 1:
        return bench
    if device.type != "cpu" or not hasattr(os, "fork"):
        raise ConfigError(
            f"search.workers={n_workers} forks processes, which goes on CPU and Unix alone, but the model is on {device}; leave "
            "search.workers out"
        )
    return PooledBench(store, evaluator, Workers(bench, n_workers))


def _begin(bench: Bench, n_workers: int) -> None:
    """Readies a process: its parent decides when it ends, and however that ends itself."""
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.join,), daemon=True).start()
    torch.set_num_threads(1)  # the threads of the parent are not there after a fork
    bench.store.share(n_workers)
    _bench = bench


def _end_with(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)


def _work(calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
    assert _bench is not None
    return [getattr(_bench, method)(*arguments) for method, arguments in calls]
