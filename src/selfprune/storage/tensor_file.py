"""Writes files of tensors so that they appear whole or not at all, and tells the true reason when they cannot be written."""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.storage.whole_files import disk_error

UNFINISHED = re.compile(r"\..+\.unfinished")
"""Names of the folders in which files grow; a killed process leaves one, which the next write of that file removes."""


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], remedy: str) -> None:
    """Writes a safetensors file with the mode that the process gives to its other files.

    Args:
        path: the file.
        tensors: name -> tensor.
        metadata: of the file, for its header.
        remedy: what to do when that fails, as `disk_error` takes it.

    Raises:
        SelfpruneError: when the disk is full or the folder cannot be written.
    """
    # a folder, since safetensors keeps a file of its own beside the one that it writes
    unfinished = path.with_name(f".{path.name}.unfinished")
    whole = unfinished / path.name
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        whole.touch()
        mode = stat.S_IMODE(whole.stat().st_mode)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, whole, metadata)
        whole.chmod(mode)
        with whole.open("rb") as file:
            os.fsync(file.fileno())
        whole.replace(path)
    except OSError as error:
        raise disk_error(path, error, remedy) from error
    except SafetensorError as error:
        raise disk_error(path, _system_error(error), remedy) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[Any]:
    """A safetensors file that was written earlier, open for its names, metadata and tensors.

    Args:
        path: the file.
        remedy: what to do when it cannot be read.

    Raises:
        ConfigError: when it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read back: {error}; {remedy}") from error


def _system_error(error: SafetensorError) -> OSError:
    """The error of the system that safetensors wraps in one of its own."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))
