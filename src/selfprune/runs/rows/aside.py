"""Work that processes of this machine do aside, each for itself, while the first one does the rest.

Limits: processes are forked, on Unix, from one that has not used a GPU. What they change is lost with them.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from selfprune.search.workers.forked import begin_forked

Measure = Callable[[str], dict[str, Any]]
_measure: Measure | None = None
"""What a process does, which it has from its parent."""


@contextmanager
def measured_aside(n_processes: int, measure: Measure, names: Sequence[str]) -> Iterator[Measure]:
    """While open, what is named was measured, or is about to be, by several processes; they take turns, this one the first.

    What is not named is measured here when it is asked for, and so is what a process did not live to measure.

    Args:
        n_processes: this one included; 1 for it alone.
        measure: what is done for a name; may change what it likes of its process.
        names: which.
    """
    here, elsewhere = names[::n_processes], [name for i, name in enumerate(names) if i % n_processes]
    if not elsewhere:
        yield measure
        return
    n_aside, fork = min(n_processes - 1, len(elsewhere)), multiprocessing.get_context("fork")
    others, executor = multiprocessing.active_children(), ProcessPoolExecutor(n_aside, fork, _begin, (measure,))
    try:
        asked = {name: executor.submit(_work, name) for name in elsewhere}
        done = {name: measure(name) for name in here}
        yield lambda name: done.pop(name) if name in done else _answer(asked.get(name), measure, name)
    finally:
        # whoever is interrupted does not wait for rows that nobody will read
        for process in set(multiprocessing.active_children()) - set(others):
            process.terminate()
        executor.shutdown(cancel_futures=True)


def _answer(asked: Future[dict[str, Any]] | None, measure: Measure, name: str) -> dict[str, Any]:
    if asked is None:
        return measure(name)
    try:
        return asked.result()
    except BrokenProcessPool:
        return measure(name)


def _begin(measure: Measure) -> None:
    global _measure
    begin_forked()
    _measure = measure


def _work(name: str) -> dict[str, Any]:
    assert _measure is not None
    return _measure(name)
