"""Folders in which one process alone works: made, looked at and written under a lock."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from selfprune.errors import InUseError
from selfprune.storage.lock import LOCK, N_TRIES, Lock, hold


class HeldFolder:
    """A folder in which this process alone works, until it is released or this process ends.

    Attributes:
        folder: the folder.
        is_new: whether it was made for this.
    """

    def __init__(self, folder: Path, is_new: bool, made: list[Path], lock: Lock) -> None:
        self.folder, self.is_new = folder, is_new
        self._made, self._lock = made, lock

    def release(self) -> None:
        """Lets others work in the folder."""
        self._lock.release()

    def withdraw(self) -> None:
        """Lets others have the folder and takes away what was made for it: the lock's file, and folders that are empty."""
        if self.is_new or self._lock.is_new:
            self._lock.remove()
        self._lock.release()
        for folder in (*([self.folder] if self.is_new else []), *self._made):
            with suppress(OSError):
                folder.rmdir()


def hold_folder(folder: Path, refusal: str) -> HeldFolder:
    """Makes a folder, unless it exists, and keeps other processes away from it before anything in it is looked at.

    Args:
        folder: the folder.
        refusal: what to tell the user when another process holds it.

    Raises:
        InUseError: when another process holds it.
        OSError: when it is no folder, or cannot be made or written.
    """
    for _ in range(N_TRIES):
        made = _missing_parents(folder)
        with suppress(FileNotFoundError):  # its owner removed it again just now
            is_new = _is_made(folder)
            if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
            return HeldFolder(folder, is_new, made, hold(folder / LOCK, refusal))
    raise InUseError(refusal)


def hold_existing_folder(folder: Path, refusal: str) -> HeldFolder:
    """Keeps other processes away from a folder that exists.

    Raises:
        InUseError: when another process holds it.
        OSError: when it does not exist, is no folder, or cannot be written.
    """
    return HeldFolder(folder, False, [], hold(folder / LOCK, refusal))


def hold_new_folder(folder: Path) -> HeldFolder:
    """Makes a folder of this name, or with a number after it where that exists, and keeps other processes away from it.

    No two processes get the same, on whichever hosts they are, since each name is given to the one whose `mkdir` made it.

    Raises:
        OSError: when it cannot be made or written.
    """
    for named in _numbered(folder):
        made = _missing_parents(named)
        # a process that was told to use this very name may have been faster with the lock
        with suppress(InUseError, FileNotFoundError):
            if _is_made(named):
                return HeldFolder(named, True, made, hold(named / LOCK, "taken"))
    raise AssertionError("there is no end of numbers")


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    for number in count(2):
        yield folder.with_name(f"{folder.name}_{number}")


def _missing_parents(folder: Path) -> list[Path]:
    """The folders that must be made for it, the innermost first."""
    return [parent for parent in folder.absolute().parents if not parent.exists()]


def _is_made(folder: Path) -> bool:
    """Makes a folder with its parents; whether it was this process that made it."""
    try:
        folder.mkdir()
    except FileNotFoundError:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return _is_made(folder)
    except FileExistsError:
        return False
    return True
