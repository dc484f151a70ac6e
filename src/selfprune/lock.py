"""A lock that keeps other processes away from a folder, by one of its files."""

import errno
import logging
from pathlib import Path
from typing import IO

from selfprune.errors import ConfigError

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


def hold(path: Path, refusal: str) -> IO[bytes]:
    """Locks a file until it is closed or this process ends, however it ends; where there are no locks, only opens it.

    Args:
        path: the file, which is created if need be.
        refusal: what to tell the user when another process holds it.

    Raises:
        ConfigError: when another process holds it.
        OSError: when it cannot be opened.
    """
    file = path.open("ab")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.close()
                raise ConfigError(refusal) from error
            logger.debug("%s cannot be locked (%s)", path, error)  # some network file systems have no locks
    return file
