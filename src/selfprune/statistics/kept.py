"""Keeps the statistics of all units at once, in memory up to a bound and else on disk.

For each input that units share, SparseGPT keeps about 2·I² + 256·I bytes (the factor of the inverse Hessian), ADMM and ALPS
4·I² (the Gram matrix), and as much again for every fused expert. A block of Llama-2-7B has four such inputs, so it comes to
0.34 and 0.69 GB, and the model to 11 and 22 GB.

Shape suffixes: I in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.errors import ConfigError, SelfpruneError, naming_unit
from selfprune.statistics.base import Statistics
from selfprune.storage.tensor_cache import TensorCache, file_bytes


@dataclass(frozen=True)
class _Kept:
    """Statistics whose tensors were taken out, and the devices of these; they lie on disk where `tensors` is None."""

    name: str
    emptied: Statistics
    devices: list[torch.device]
    tensors: list[Tensor] | None


class KeptStatistics:
    """Statistics by unit; those that units share are kept once.

    What is given back is a copy, so that it never matters who has used it before.

    Args:
        cache: takes what memory may not.
        max_bytes: bound on what is kept in memory.
        largest_level_bytes: room that must be left in the cache.
        prepare: the pruner's, done before they are kept, so that no level repeats it.

    Example:
        >>> kept = KeptStatistics(cache, max_bytes=10**9, largest_level_bytes=10**8, prepare=pruner.prepare)
        >>> for _, statistics in calibrate_blocks(loaded, windows_NT, pruner, batch_size):
        ...     kept.keep(statistics)
        >>> pruner.prune(weight_OI, kept.of("model.layers.0.mlp.up_proj"), n_pruned)

    Attributes:
        cache: the same.
        n_memory_bytes: what is kept in memory.
    """

    def __init__(
        self, cache: TensorCache, max_bytes: int, largest_level_bytes: int, prepare: Callable[[Statistics], None]
    ) -> None:
        self.cache = cache
        self.n_memory_bytes = 0
        self._max_bytes = max_bytes
        self._largest_level_bytes = largest_level_bytes
        self._prepare = prepare
        self._kept: dict[str, _Kept] = {}

    def keep(self, statistics: dict[str, Statistics]) -> None:
        """Keeps the statistics of a block's units.

        Raises:
            ConfigError: when neither memory nor disk may hold them.
            PruningError: when they are not finite; the message names the unit.
            SelfpruneError: when the disk is full.
        """
        kept_of: dict[int, _Kept] = {}
        for name, gathered in statistics.items():
            if id(gathered) not in kept_of:
                kept_of[id(gathered)] = self._keep(name, gathered)
            self._kept[name] = kept_of[id(gathered)]

    def of(self, unit: str) -> Statistics:
        """A copy of a unit's statistics, where they were gathered (a GPU, perhaps).

        Args:
            unit: its name.

        Raises:
            SelfpruneError: when their file is gone or damaged.
        """
        kept = self._kept[unit]
        tensors = self.cache.read(kept.name) if kept.tensors is None else kept.tensors
        if tensors is None:
            raise SelfpruneError(
                f"the statistics of {unit} in {self.cache.folder} are gone or damaged; continue the run with `python -m "
                "selfprune resume=<run folder>`, which gathers them anew"
            )
        copies = [tensor.to(device, copy=True) for tensor, device in zip(tensors, kept.devices, strict=True)]
        return kept.emptied.with_tensors(copies)

    def _keep(self, unit: str, gathered: Statistics) -> _Kept:
        with naming_unit(unit):
            self._prepare(gathered)
        tensors, name = gathered.tensors(), f"statistics-{unit}"
        emptied, devices = gathered.with_tensors([torch.empty(0)] * len(tensors)), [tensor.device for tensor in tensors]
        n_bytes = sum(tensor.nbytes for tensor in tensors)
        if self.n_memory_bytes + n_bytes <= self._max_bytes:
            self.n_memory_bytes += n_bytes
            # contiguous, as they come back from disk: the order of summation in a product may depend on the layout
            return _Kept(name, emptied, devices, [tensor.contiguous().to("cpu", copy=True) for tensor in tensors])
        if not self.cache.can_hold(file_bytes(tensors), self._largest_level_bytes):
            raise ConfigError(
                f"the statistics of {unit} take {n_bytes:,} bytes, for which neither search.levels.statistics_gb="
                f"{self._max_bytes / 1e9:g} nor search.levels.cache_gb={self.cache.max_bytes / 1e9:g} has room beside those of "
                f"{len(self._kept)} units before it and one level; raise either (all blocks need about as much each), or take "
                "search.levels.kind=MASKS"
            )
        self.cache.write(name, [tensor.cpu() for tensor in tensors])
        return _Kept(name, emptied, devices, None)
