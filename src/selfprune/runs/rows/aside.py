"""Work that other processes do aside, each for itself, while this one does its share of it.

Limits: what a process changes is lost with it.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from selfprune.search.workers.workers import Executor

Measure = Callable[[str], dict[str, Any]]
_measure: Measure | None = None
"""What a process does that was begun for it."""


@contextmanager
def measured_aside(
    n_processes: int, start: Callable[[int], Executor], measure: Measure, names: Sequence[str]
) -> Iterator[Measure]:
    """While open, what is named was measured, or is about to be, by several processes; they take turns, this one the first.

    What is not named is measured here when it is asked for, and so is what a process did not live to measure.

    Args:
        n_processes: this one included; 1 for it alone.
        start: starts so many others, which `begin` readies.
        measure: what is done for a name in this process.
        names: which.
    """
    here, elsewhere = names[::n_processes], [name for i, name in enumerate(names) if i % n_processes]
    if not elsewhere:
        yield measure
        return
    others, executor = multiprocessing.active_children(), start(min(n_processes - 1, len(elsewhere)))
    try:
        asked = {name: executor.submit(_work, name) for name in elsewhere}
        done = {name: measure(name) for name in here}
        yield lambda name: done.pop(name) if name in done else _answer(asked.get(name), measure, name)
    finally:
        # whoever is interrupted does not wait for rows that nobody will read
        for process in set(multiprocessing.active_children()) - set(others):
            process.terminate()
        executor.shutdown(cancel_futures=True)


def begin(measure: Measure) -> None:
    """Readies a process.

    Args:
        measure: what it does for a name; may change what it likes of the process.
    """
    global _measure
    _measure = measure


def _answer(asked: Future[dict[str, Any]] | None, measure: Measure, name: str) -> dict[str, Any]:
    if asked is None:
        return measure(name)
    try:
        return asked.result()
    except BrokenProcessPool:
        return measure(name)


def _work(name: str) -> dict[str, Any]:
    assert _measure is not None
    return _measure(name)
