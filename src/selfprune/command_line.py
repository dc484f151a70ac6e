"""What the commands share: a user's mistake becomes one paragraph and exit code 2."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from transformers.utils.logging import disable_progress_bar

from selfprune.config import register_schemas
from selfprune.errors import SelfpruneError, complain

INTERRUPTED = 130
"""Exit code of a command that was interrupted."""
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def set_up() -> None:
    """Quiet libraries, our own log level, and the schemas that Hydra composes."""
    level = os.environ.get("SELFPRUNE_LOG", "WARNING").upper()
    if level not in LOG_LEVELS:
        sys.exit(complain(f"the environment variable SELFPRUNE_LOG must be one of {', '.join(LOG_LEVELS)}, got {level}"))
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    register_schemas()


def guarded(work: Callable[[], object], command: str, interrupted: Callable[[KeyboardInterrupt], str]) -> int:
    """Runs `work` and tells what went wrong, if it was a user's mistake.

    Args:
        work: what the command does.
        command: how it is called, for the way to its options.
        interrupted: what to tell who interrupts it.

    Returns:
        the exit code: 0, 2 for a user's mistake, 130 when interrupted.
    """
    with _noting_interrupts() as noted:
        try:
            work()
        except KeyboardInterrupt as interrupt:
            return complain(interrupted(interrupt), INTERRUPTED)
        except Exception as error:
            if noted:
                return complain(interrupted(KeyboardInterrupt()), INTERRUPTED)
            mistake = _mistake(error, command)
            if mistake is None:
                raise
            return complain(mistake)
    return 0


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """While open, lists the interrupts, since a library that is hit in native code may raise some error of its own instead."""
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _mistake(error: Exception, command: str) -> str | None:
    """The paragraph for a user's mistake; None for any other error."""
    options = f"To see every option and its default: {command} --cfg job"
    if isinstance(error, SelfpruneError):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return f"{_plain(error)} {options}"
    # the one mistake that Hydra tells by an error of Python's own
    before, found, kind = str(error).partition("Config group override must be a string or a list. Got ")
    if isinstance(error, ValueError) and found and not before:
        return (
            f"a config group must be given a name, got {kind}; a group takes the name of a choice, as in pruner=wanda, is "
            f"left out by a tilde, as in '~controls.random', and an option takes a value, as in budget.sparsity=0.5. {options}"
        )
    return None


def _plain(error: Exception) -> str:
    """The sentences of a composition error."""
    said = str(error) if error.__cause__ is None else f"{error} ({error.__cause__})"
    lines = [
        line.strip() for line in said.splitlines() if line.strip() and not line.lstrip().startswith(("full_key:", "object_type="))
    ]
    return " ".join(lines)
