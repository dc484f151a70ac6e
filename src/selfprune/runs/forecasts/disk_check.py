"""Refuses what does not fit onto a disk."""

from pathlib import Path

from selfprune.errors import SelfpruneError
from selfprune.storage.disk import free_bytes


def check_disk(n_bytes: int, folder: Path, what: str, option: str) -> None:
    """Checks that a folder's disk has room.

    Args:
        n_bytes: what is still to be written.
        folder: where to; it need not exist.
        what: is written, for the message.
        option: names the folder, for the message.

    Raises:
        SelfpruneError: when it does not fit.
    """
    free = free_bytes(folder)
    if n_bytes > free:
        raise SelfpruneError(
            f"{what} takes about {n_bytes / 1e9:.2f} GB more in {folder}, but the disk has {free / 1e9:.2f} GB free; free some "
            f"space or choose another {option}"
        )
