"""Locks that keep other processes away from a folder or a file, however this process ends.

A lock lies on a file that is never replaced, and whoever takes one makes sure that the file is still in its place: so its
owner can remove it while others wait to make it anew.

What holds where: on local file systems, and on network file systems that pass `flock` on (NFS since Linux 2.6.12 with a lock
daemon, Lustre mounted with `flock`, CephFS, GPFS), of all processes on all hosts one alone has the lock, and a process that is
killed gives it up. A file system mounted with host-local locks (`nolock`, `local_lock`, `localflock`) keeps only processes of one
host apart. Where there are no locks at all, an owner file is made by an exclusive create, which keeps all hosts apart; but one
that a killed process leaves behind on another host stays until the user removes it, which the refusal says, and two processes
that find a dead owner of their own host at the same instant may both take over.
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selfprune.errors import InUseError
from selfprune.storage.whole_files import disk_error

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file in a folder that its lock lies on."""
OWNER_SUFFIX = ".owner"
"""What follows the name of a lock's file in the name of its owner file."""
N_TRIES = 100
"""How often a file that its owner removed meanwhile is made again."""


class Lock:
    """A lock that this process holds.

    Attributes:
        path: its file.
        is_new: whether the file was made for it.
    """

    def __init__(self, path: Path, descriptor: int, is_new: bool, owner: Path | None) -> None:
        self.path, self.is_new = path, is_new
        self._descriptor: int | None = descriptor
        self._owner = owner

    def is_in_place(self) -> bool:
        """Whether the file at the path still is the one that is locked."""
        if self._descriptor is None:
            return False
        try:
            there, ours = self.path.stat(), os.fstat(self._descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def release(self) -> None:
        """Lets others have it."""
        if self._descriptor is None:
            return
        if self._owner is not None:
            self._owner.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def remove(self) -> None:
        """Removes its file and lets others have the path."""
        if self.is_in_place():
            with suppress(OSError):
                self.path.unlink()
        self.release()


def hold(path: Path, refusal: str) -> Lock:
    """Locks a file until the lock is released or this process ends.

    Args:
        path: the file, which is made if need be.
        refusal: what to tell the user when another process holds it.

    Raises:
        InUseError: when another process holds it.
        OSError: when it cannot be opened.
    """
    for _ in range(N_TRIES):
        descriptor, is_new = _opened(path)
        try:
            owner = _take(descriptor, path, refusal)
        except BaseException:
            os.close(descriptor)
            raise
        lock = Lock(path, descriptor, is_new, owner)
        if lock.is_in_place():
            return lock
        lock.release()
    raise InUseError(refusal)


@contextmanager
def held_file(path: Path, refusal: str) -> Iterator[None]:
    """While open, no other process writes a file; the lock lies on a hidden file beside it, which goes with it.

    Args:
        path: the file that will be written.
        refusal: what to tell the user when another process writes it.

    Raises:
        InUseError: when another process holds it.
        SelfpruneError: when nothing can be written there.
    """
    try:
        lock = hold(path.with_name(f".{path.name}{LOCK}"), refusal)
    except OSError as error:
        raise disk_error(path, error, "give a file in a folder that can be written") from error
    try:
        yield
    finally:
        lock.remove()


def _opened(path: Path) -> tuple[int, bool]:
    """A descriptor of the file, and whether it was made."""
    with suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False


def _take(descriptor: int, path: Path, refusal: str) -> Path | None:
    """Locks an open file; where the file system has no locks, makes and returns its owner file."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InUseError(refusal) from error
    return _make_owner(path.with_name(f"{path.name}{OWNER_SUFFIX}"), refusal)


def _make_owner(path: Path, refusal: str) -> Path:
    """The owner file, which names this process; taken over from a process of this host that has ended."""
    ours = {"host": socket.gethostname(), "process": os.getpid()}
    owner = _read_owner(path)
    if owner and has_ended(str(owner["host"]), int(owner["process"])):
        path.unlink(missing_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError as error:
        owner = _read_owner(path)
        named = f"process {owner['process']} on {owner['host']}" if owner else "another process"
        raise InUseError(
            f"{refusal} (this file system has no locks; if {named} has ended, remove {path} and try again)"
        ) from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(ours, file)
    return path


def _read_owner(path: Path) -> dict[str, str | int]:
    """What an owner file says; empty where there is none, or it is not yet or not rightly written."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return {"host": str(owner["host"]), "process": int(owner["process"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def has_ended(host: str, process: int) -> bool:
    """Whether a process of this host has ended; of others that cannot be seen.

    Args:
        host: where it was at work.
        process: its number there.
    """
    if host != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
