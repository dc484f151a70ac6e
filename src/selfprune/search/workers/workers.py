"""Processes that measure: what they are asked, and what becomes of it when one of them dies."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Protocol

from selfprune.errors import SelfpruneError

MAX_BROKEN = 3
"""Times in a row that processes may end before any of them has measured something."""
Key = tuple[Any, ...]


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


class Executor(Protocol):
    """What is asked of a `ProcessPoolExecutor`, or of what stands in for one."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Hands a call to a process."""
        ...

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes."""
        ...


@dataclass
class Workers:
    """The processes, and what they were asked.

    Attributes:
        n: how many there are.
        start: starts them.
        work: what each does with the methods and arguments of several tasks.
    """

    n: int
    start: Callable[[], Executor]
    work: Callable[[Sequence[tuple[str, tuple[Any, ...]]]], list[Any]]
    _executor: Executor | None = field(default=None, init=False)
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
            self._executor = self.start()
        try:
            future = self._executor.submit(self.work, [(task.method, task.arguments) for task in tasks])
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        for place, task in enumerate(tasks):
            self._asked[task.key] = future, place, tasks

    def _begin_again(self, error: BrokenProcessPool) -> None:
        """Starts the processes anew and asks once more what was not answered.

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
