"""What a command shows while it works."""

import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from selfprune.configs.signals import leaving_at_once
from selfprune.errors import complain


class Update(Protocol):
    """Tells how far a stage is."""

    def __call__(self, done: int, note: str = "") -> None:
        """Takes the work that is done, in the unit of the stage's total, and what else to show."""


Listener = Callable[[str, float | None, str], object]
"""Is told a stage, the share of it that is done, or None where that is unknown, and a note."""
_heard: ContextVar[tuple[Listener | None, bool]] = ContextVar("heard", default=(None, False))
SECONDS_BETWEEN_LINES = 30.0
"""At most so often tells a stage how far it is, where there is no terminal."""


class Display:
    """One line per stage, and a bar while it works; without a terminal a line when it begins, every 30 s, and when it is done.

    Everything goes to the error stream. `SELFPRUNE_LOG=WARNING` (or a higher level) leaves warnings alone.

    Example:
        >>> with Display().stage("searching", total=600_000) as update:
        ...     update(1000, "best 0.5, 3 candidates")

    Attributes:
        warnings: what was told by `warn`, in order.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Shows on a stream.

        Args:
            stream: the error stream where it is left out.
            clock: seconds.
        """
        self._stream, self._clock = stream or sys.stderr, clock
        self._listener, is_quiet = _heard.get()
        self._quiet = is_quiet or os.environ.get("SELFPRUNE_LOG", "INFO").upper() in ("WARNING", "ERROR", "CRITICAL")
        self.console = Console(file=self._stream, quiet=self._quiet)
        self.warnings: list[str] = []

    def say(self, lines: str) -> None:
        """Shows lines that stay."""
        if self._stream.isatty():
            self.console.print(lines, highlight=False, markup=False)
        elif not self._quiet:
            now = datetime.datetime.now().strftime("%H:%M:%S")
            self._stream.write("".join(f"{now} {line}\n" for line in lines.splitlines()))
            self._stream.flush()

    def warn(self, paragraph: str) -> None:
        """Tells once what makes the results doubtful, and keeps it for the report.

        Args:
            paragraph: what is doubtful, what was expected and found, and what to do.
        """
        if paragraph not in self.warnings:
            self.warnings.append(paragraph)
            complain(f"warning: {paragraph}", 0)

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Update]:
        """Shows a stage while it lasts.

        Args:
            title: what is being done.
            total: amount of work, in the unit that `update(done, note)` is called with; None when unknown.

        Yields:
            `update(done, note="")`.
        """
        shown = self._bar(title, total) if self._stream.isatty() else self._lines(title, total)
        listener = self._listener
        with shown as update:
            if listener is None:
                yield update
                return

            def tell_both(done: int, note: str = "") -> None:
                update(done, note)
                listener(title, min(1.0, done / total) if total else None, note)

            listener(title, 0.0 if total else None, "")
            yield tell_both
            listener(title, 1.0, "done")

    @contextmanager
    def _lines(self, title: str, total: int | None) -> Iterator[Update]:
        began = told = self._clock()
        last_note = ""
        self.say(title)

        def update(done: int, note: str = "") -> None:
            nonlocal told, last_note
            last_note, now = note, self._clock()
            if now - told < SECONDS_BETWEEN_LINES:
                return
            told, share = now, min(1.0, done / total) if total else 0.0
            parts = [f"{share:.0%}" if total else "", note, f"{_in_words(now - began)} so far"]
            parts += [f"about {_in_words((now - began) * (1 - share) / share)} left"] if share else []
            self.say(f"{title}: {', '.join(filter(None, parts))}")

        yield update
        done = f"done in {_in_words(self._clock() - began)}"
        self.say(f"{title}: {', '.join(filter(None, (done, last_note)))}")

    @contextmanager
    def _bar(self, title: str, total: int | None) -> Iterator[Update]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self.console) as progress:
            task: TaskID = progress.add_task(title, total=total, note="")

            def update(done: int, note: str = "") -> None:
                progress.update(task, completed=min(done, total or done), note=note)

            yield update
            if total is None:
                progress.update(task, total=1, completed=1)


@contextmanager
def heard(listener: Listener | None, is_quiet: bool) -> Iterator[None]:
    """While open, what displays show is told to a listener as well.

    Args:
        listener: who is told; None for nobody.
        is_quiet: whether displays themselves show nothing but warnings.
    """
    token = _heard.set((listener, is_quiet))
    try:
        yield
    finally:
        _heard.reset(token)


@contextmanager
def importing(left: str) -> Iterator[None]:
    """Says that the libraries are imported, unless they were already; while open, a stop ends the process on the spot.

    Args:
        left: what to tell of what a stop left behind.
    """
    if "transformers" not in sys.modules:
        Display().say("importing the libraries of models and tasks")
    with leaving_at_once(left):
        yield


def _in_words(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes else f"{left} s"
