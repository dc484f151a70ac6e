"""Tensors in a folder of bounded size: a file appears whole or not at all, and the least recently used goes first.

A manifest says what the tensors were made from. A folder that was made from something else is emptied, and a file that is cut
short or belongs to another manifest counts as absent; so nothing stale is ever read.
"""

import atexit
import hashlib
import json
import logging
import os
import re
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.storage.lock import LOCK, Lock, hold
from selfprune.storage.tensor_file import UNFINISHED, write_tensors
from selfprune.storage.whole_files import disk_error, write_whole

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
EVICTABLE, PINNED = re.compile(r"level-.+\.safetensors"), re.compile(r"statistics-.+\.safetensors")
OWN = (EVICTABLE, PINNED, UNFINISHED, re.compile(r"\..+\.partial"))
REMEDY = (
    "continue with `python -m selfprune resume=<run folder>`; search.levels.cache_gb bounds what levels take, and "
    "search.levels.folder says where they lie"
)
_held: dict[Path, Lock] = {}
"""The lock files of this process, which keeps them: closing one would give up the lock of every other use of that folder."""


class TensorCache:
    """Lists of tensors by name, on disk.

    Names begin with `level-`, which may be evicted, or with `statistics-`, which stay as long as this process wants them and
    are not taken over from an earlier one.

    Args:
        folder: where the files lie; made when absent. No two processes share one.
        max_bytes: bound on all files together, the one that is being written included.
        origin: everything that decides the tensors, in JSON's types.

    Raises:
        ConfigError: when the folder holds other things, or another process uses it.
        SelfpruneError: when it cannot be written.

    Example:
        >>> cache = TensorCache(folder, max_bytes=10**9, origin={"model": "sha256 of the weights"})
        >>> cache.write("level-a-100", [weight_OI])
        >>> cache.read("level-a-100")

    Attributes:
        n_bytes: bytes of all files.
    """

    def __init__(self, folder: Path, max_bytes: int, origin: dict[str, Any]) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        content = json.dumps(origin, indent=2, sort_keys=True) + "\n"
        self._metadata = {"origin": hashlib.sha256(content.encode()).hexdigest()}
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._n_manifest_bytes = len(content.encode())
        self._is_frozen = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_own()
            _hold(folder)
            self._open(content)
        except OSError as error:
            raise disk_error(folder, error, REMEDY) from error
        self._make_room(0)

    @property
    def n_bytes(self) -> int:
        """Bytes of all files, the manifest included."""
        return self._n_manifest_bytes + sum(self._sizes.values())

    def can_hold(self, n_pinned_bytes: int, n_level_bytes: int) -> bool:
        """Whether more such statistics, and beside all of them one such level, fit into the bound."""
        pinned = sum(size for name, size in self._sizes.items() if PINNED.fullmatch(_file_name(name)))
        return self._n_manifest_bytes + pinned + n_pinned_bytes + n_level_bytes <= self.max_bytes

    def freeze(self) -> None:
        """From now on the folder is only read, by this copy of the cache in a process that was forked."""
        self._is_frozen = True

    def read(self, name: str) -> list[Tensor] | None:
        """The tensors under a name, mapped from their file; None where there are none or the file is damaged.

        Whoever keeps them should copy them, since the disk is not free before they are forgotten.
        """
        if name not in self._sizes:
            return None
        path = self.folder / _file_name(name)
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() != self._metadata:
                    raise SafetensorError("it was made from something else")
                tensors = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
        except (OSError, SafetensorError) as error:
            logger.warning("%s is damaged (%s) and counts as absent", path, error)
            self._remove(name)
            return None
        self.touch(name)
        return tensors

    def touch(self, name: str) -> None:
        """Takes note that the tensors under a name are in use, wherever they were read from."""
        if name in self._sizes and not self._is_frozen:
            self._sizes.move_to_end(name)
            try:
                os.utime(self.folder / _file_name(name))  # a later process reads the order from these times
            except OSError:  # nothing is lost but the order
                logger.debug("%s could not be touched", name)

    def write(self, name: str, tensors: list[Tensor]) -> None:
        """Writes tensors under a name, after others made room for them.

        Raises:
            ConfigError: when the bound has no room for them.
            SelfpruneError: when the disk is full or the folder cannot be written.
        """
        if self._is_frozen:
            return
        self._remove(name)
        self._make_room(file_bytes(tensors))
        path = self.folder / _file_name(name)
        write_tensors(path, {str(i): tensor for i, tensor in enumerate(tensors)}, self._metadata, REMEDY)
        self._sizes[name] = path.stat().st_size

    def _make_room(self, n_bytes: int) -> None:
        evictable = [name for name in self._sizes if EVICTABLE.fullmatch(_file_name(name))]
        while self.n_bytes + n_bytes > self.max_bytes:
            if not evictable:
                raise ConfigError(
                    f"{self.folder} may hold {self.max_bytes:,} bytes, of which {self.n_bytes:,} are in use and {n_bytes:,} more "
                    "are needed; raise search.levels.cache_gb"
                )
            self._remove(evictable.pop(0))

    def _remove(self, name: str) -> None:
        if self._is_frozen:
            return
        (self.folder / _file_name(name)).unlink(missing_ok=True)
        self._sizes.pop(name, None)

    def _check_own(self) -> None:
        """Refuses a folder that is not ours, since files in it are removed."""
        names = [path.name for path in self.folder.iterdir()]
        foreign = [name for name in names if not name.startswith(LOCK) and not _is_own(name)]
        if foreign and MANIFEST not in names:
            raise ConfigError(
                f"search.levels.folder={self.folder} should be empty or a cache of levels, but it holds other things, such as "
                f"{min(foreign)}; choose another folder"
            )

    def _open(self, content: str) -> None:
        """Takes over the levels of an earlier process if they have the same origin, and removes everything else of ours."""
        manifest = self.folder / MANIFEST
        is_same = manifest.is_file() and manifest.read_bytes() == content.encode()
        levels = []
        for path in self.folder.iterdir():
            if is_same and EVICTABLE.fullmatch(path.name):
                levels.append((path.stat().st_mtime_ns, path))
            elif path.is_dir() and UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path)
            elif _is_own(path.name):
                path.unlink()
        for _, path in sorted(levels):
            self._sizes[path.name.removesuffix(".safetensors")] = path.stat().st_size
        if not is_same:
            if manifest.exists():
                logger.warning("the levels in %s were made from another model, text or config; they are built anew", self.folder)
            write_whole(manifest, content)


def file_bytes(tensors: list[Tensor]) -> int:
    """At least the size of a file that holds these tensors, and hardly more."""
    return sum(tensor.nbytes for tensor in tensors) + 1024 + 256 * len(tensors)


def _is_own(file_name: str) -> bool:
    return any(pattern.fullmatch(file_name) for pattern in OWN)


def _file_name(name: str) -> str:
    return f"{name}.safetensors"


def _hold(folder: Path) -> None:
    """Keeps other processes away from a folder for as long as this one lives."""
    path = (folder / LOCK).resolve()
    if path not in _held or not _held[path].is_in_place():
        _held[path] = hold(
            path,
            f"search.levels.folder={folder} is in use by another process; wait for it, or choose a folder for this run alone",
        )
        atexit.register(_held[path].release)
