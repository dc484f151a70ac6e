"""Ctrl-C and SIGTERM: one sentence and an exit code of their own, whatever a command is doing."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from selfprune.errors import complain

INTERRUPTED = 130
"""Exit code of a command that was interrupted."""
TERMINATED = 143
"""Exit code of a command that was told to end, as Slurm and `kill` do."""
STOPPED = (INTERRUPTED, TERMINATED)

_noted: list[int] = []
Stopped = Callable[[KeyboardInterrupt], str]
"""Given the interrupt, what to tell of what was left behind."""


def stoppable(work: Callable[[], int], stopped: Stopped) -> int:
    """Runs `work`; a SIGINT or SIGTERM that ends it is told in one sentence.

    Args:
        work: gives an exit code.
        stopped: what to tell of what was left behind; begins after `interrupted; `.

    Returns:
        the exit code of the work, 130 after a SIGINT, 143 after a SIGTERM.
    """
    with _noting():
        try:
            return work()
        except KeyboardInterrupt as interrupt:
            return _tell(stopped(interrupt))
        except Exception:
            # a library that is hit in native code may raise some error of its own instead
            if not _noted:
                raise
            return _tell(stopped(KeyboardInterrupt()))


@contextmanager
def naming_on_stop(what: str) -> Iterator[None]:
    """While open, a stop names something, such as the folder that it leaves.

    Raises:
        KeyboardInterrupt: with that name, whatever error a library made of the signal.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(what) from interrupt
    except Exception as error:
        if not _noted:
            raise
        raise KeyboardInterrupt(what) from error


@contextmanager
def leaving_at_once(left: str) -> Iterator[None]:
    """While open, a SIGINT or SIGTERM ends the process on the spot: imports lose an interrupt or make other errors of it.

    Args:
        left: what to tell of what was left behind.
    """

    def leave(number: int, _: FrameType | None) -> None:
        _noted.append(number)
        os._exit(_tell(left))

    with _handled_by({signal.SIGINT: leave, signal.SIGTERM: leave}):
        yield


def _tell(left: str) -> int:
    terminated = bool(_noted) and _noted[-1] == signal.SIGTERM
    return complain(f"{'terminated' if terminated else 'interrupted'}; {left}", TERMINATED if terminated else INTERRUPTED)


@contextmanager
def _noting() -> Iterator[None]:
    """While open, both signals are noted and raise an interrupt, as SIGINT does anyway."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        _noted.append(number)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        raise KeyboardInterrupt

    outer = _noted.copy()
    _noted.clear()
    try:
        with _handled_by(dict.fromkeys(before, note)):
            yield
    finally:
        _noted[:] = outer


@contextmanager
def _handled_by(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """While open, the handlers are in force, but for signals that the process was told to ignore, as `nohup` does."""
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    signal.signal(number, handler)
                    stack.callback(signal.signal, number, before)
        yield
