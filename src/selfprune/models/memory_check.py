"""What memory a model needs and what its device has free, compared before any weight is read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfprune.errors import ModelError

LIBRARY_BYTES = 500_000_000
"""Main memory of the interpreter with torch and transformers, before any model."""
MoreBytes = Callable[[Any, int, int], int]
"""What a caller holds besides the weights, in bytes; by the model without weights, its parameters and the bytes of each."""


@dataclass(frozen=True)
class Preflight:
    """What loading needs and what there is.

    Attributes:
        n_parameters: parameters that are held at once, tied ones once.
        needed_bytes: memory for the weights and for what the caller adds.
        available_bytes: free memory of the device; None where the system does not say.
        bytes_per_weight: of one weight, in the number format that it will have.
        skeleton: the model without its weights.
    """

    n_parameters: int
    needed_bytes: int
    available_bytes: int | None
    bytes_per_weight: int
    skeleton: Any


def check_memory(
    path: str, skeleton: Any, n_parameters: int, dtype: torch.dtype, device: torch.device, more_bytes: int
) -> Preflight:
    """Checks that a model fits into the device's free memory.

    Args:
        path: the model as the user named it.
        skeleton: the model without its weights.
        n_parameters: how many are held at once.
        dtype: number format that the weights will have.
        device: where they will lie.
        more_bytes: what the caller will hold besides.

    Raises:
        ModelError: when it does not fit, or when there is no such device.
    """
    needed = n_parameters * dtype.itemsize + more_bytes
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"model.device={device}, but torch sees no GPU here; give model.device=cpu, or install a torch build with CUDA"
        )
    if device.type not in ("cpu", "cuda") and not _has_backend(device):
        raise ModelError(f"model.device={device}, but torch sees no such device here; give model.device=cpu")
    available = free_memory_bytes(device)
    if available is not None and needed > available:
        besides = f", and {more_bytes / 1e9:.2f} GB more for the run," if more_bytes else ""
        fewer = (
            " fewer windows or processes (data.n_search, data.n_report, search.batch_size, search.workers)," if more_bytes else ""
        )
        raise ModelError(
            f"model.path={path} does not fit: {n_parameters:,} parameters at {dtype.itemsize} bytes{besides} need "
            f"{needed / 1e9:.2f} GB, but {device} has {available / 1e9:.2f} GB free; give model.dtype=BFLOAT16, a device with "
            f"more memory or a smaller model,{fewer} or prune it from disk, without a search, with "
            f"`python -m selfprune.prune model.placement=STREAM`"
        )
    return Preflight(n_parameters, needed, available, dtype.itemsize, skeleton)


def free_memory_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where the system does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory_bytes()


def _has_backend(device: torch.device) -> bool:
    """Whether this build of torch can hold a tensor there."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, NotImplementedError, AssertionError, ImportError):
        return False
    return True


def _free_memory_bytes() -> int | None:
    """Memory that can be had without swapping, within the container's limit if there is one."""
    candidates = []
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        candidates.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            candidates.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        group = Path("/sys/fs/cgroup")
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        candidates.append(max(0, int((group / "memory.max").read_text()) - int(held["anon"])))
    except (OSError, KeyError, ValueError):
        pass
    return min(candidates, default=None)
