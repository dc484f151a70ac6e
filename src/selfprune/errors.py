"""Errors that a user can cause; each prints as one paragraph and exits with code 2."""

import difflib
import errno
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SelfpruneError(Exception):
    """A user's mistake, told as what was wrong, what was expected, what was got and what to do."""


class ConfigError(SelfpruneError):
    """A value of the config is wrong, or the config does not belong to the run folder."""


class InUseError(ConfigError):
    """Another process works in a folder or on a file."""


class ModelError(SelfpruneError):
    """A model cannot be loaded, understood or fitted."""


class DataError(SelfpruneError):
    """A text is missing, empty, too short or out of reach."""


class AllocationError(SelfpruneError):
    """An allocation does not belong to the units, or no allocation can meet the budget."""


class PruningError(SelfpruneError):
    """A unit cannot be pruned as asked."""


class LanguageModelError(SelfpruneError):
    """A language model cannot be reached or cannot answer."""


@contextmanager
def naming_unit(unit: str) -> Iterator[None]:
    """While open, a unit that cannot be pruned is named.

    Raises:
        PruningError: whichever is raised inside, with the unit's name before its message.
    """
    try:
        yield
    except PruningError as error:
        raise PruningError(f"{unit}: {error}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known names, nearest first, for the end of an error message."""
    ranked = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
    return ", ".join(ranked)


REFUSALS = ("ENAMETOOLONG", "EEXIST", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ELOOP", "EROFS", "ENOSPC", "EDQUOT")
"""What the system answers about a path that a user chose, as `errno` names it; a file that is missing may be our own fault."""


def refused_path(error: OSError) -> str | None:
    """The paragraph for a path of the user's that the system refuses; None for any other error.

    Args:
        error: what the system answered.
    """
    if error.filename is None or errno.errorcode.get(error.errno or 0) not in REFUSALS:
        return None
    return f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}; correct the option that names it, or its permissions"


def complain(message: str, code: int = 2) -> int:
    """Tells a mistake on the standard error, as one paragraph.

    Args:
        message: what was wrong, what was expected, what was got and what to do.
        code: the exit code that goes with it.

    Returns:
        the exit code.
    """
    paragraph = textwrap.fill(message, width=100, initial_indent="selfprune: ", break_long_words=False, break_on_hyphens=False)
    sys.stderr.write(f"{paragraph}\n")
    return code
