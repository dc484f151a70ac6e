"""Files that appear whole or not at all, and the paragraph for a write that failed."""

import contextlib
import errno
import os
from pathlib import Path

from selfprune.errors import SelfpruneError

RESUME_A_RUN = "continue with `python -m selfprune resume=<run folder>`"


def write_whole(path: Path, content: str | bytes, remedy: str = RESUME_A_RUN) -> None:
    """Writes a file so that it appears whole or not at all.

    Args:
        path: the file.
        content: what it will hold.
        remedy: what to do when that fails, as `disk_error` takes it.

    Raises:
        SelfpruneError: when the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise disk_error(path, error, remedy) from error


def disk_error(path: Path, error: OSError, remedy: str = RESUME_A_RUN) -> SelfpruneError:
    """The paragraph for a write that failed.

    Args:
        path: what should have been written.
        error: of the system.
        remedy: what to do once the path can be written again.
    """
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if is_full else (error.strerror or str(error))
    first = "free some space" if is_full else "see to it that it can be written"
    return SelfpruneError(f"{path} could not be written: {reason}. Everything before it is kept; {first} and {remedy}")
