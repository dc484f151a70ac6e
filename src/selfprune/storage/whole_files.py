"""Files and folders that appear whole or not at all, and the paragraph for a write that failed."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from selfprune.errors import SelfpruneError

RESUME_A_RUN = "continue with `python -m selfprune resume=<run folder>`"


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object], remedy: str = RESUME_A_RUN) -> None:
    """Writes a file so that it appears whole or not at all.

    Args:
        path: the file.
        content: what it will hold, or what writes it, and raises OSError where it cannot.
        remedy: what to do when that fails, as `disk_error` takes it.

    Raises:
        SelfpruneError: when the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise disk_error(path, error, remedy) from error


@contextlib.contextmanager
def whole_folder(folder: Path, remedy: str = RESUME_A_RUN) -> Iterator[Path]:
    """While open, gives an empty folder to write into, which then takes the place of `folder`; or leaves no trace.

    Args:
        folder: replaced if it exists.
        remedy: what to do when that fails, as `disk_error` takes it.

    Raises:
        SelfpruneError: when the disk is full or the folder cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise disk_error(folder, error, remedy) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
