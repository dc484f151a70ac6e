"""Yields a unit's weights at any level with the pruner's update of those that stay, built when first asked for.

EvoPress (Sieberling et al., 2024, arXiv 2410.14649) searches a database of SparseGPT's weights for every unit and level. Here a
level is built from statistics of the dense model, once it is needed, and stays in memory or on disk as long as there is room.

Limits: the first use of a level costs a solve, and all statistics must be kept (`kept_statistics` says how many bytes). As in
the paper, each unit is solved on the inputs of the dense model, not of the pruned units before it; the winner is pruned afresh.
Gradients read the level below of every unit anew for every batch of windows.

Shape suffixes: N sequences, T tokens, O out, I in.
"""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfprune import __version__
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Item, Unit
from selfprune.errors import ConfigError, naming_unit
from selfprune.levels.dense_weights import DenseWeights
from selfprune.levels.level_store import LevelStore
from selfprune.levels.levels_config import LevelsConfig
from selfprune.models.loading import LoadedModel
from selfprune.models.units import by_item, spread, weight_view
from selfprune.pruners.base import Pruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.kept import KeptStatistics
from selfprune.storage.disk import folder_bytes, free_bytes
from selfprune.storage.tensor_cache import TensorCache, file_bytes


class BuiltLevels(LevelStore):
    """The dense weights, and levels that are built when asked for; level 0 is always the dense weight.

    Memory beyond the model: one copy of the units' weights, the two bounds of the config, and while a level is built one more
    copy of its unit's statistics.

    Args:
        loaded: the dense model.
        grid: units and their levels.
        pruner: makes the levels.
        statistics: still empty; levels are kept in their cache.
        memory_bytes: bound on the levels that are also kept in memory.
        dense: keeps the dense weights; copies when None.

    Example:
        >>> statistics = open_statistics(loaded, grid, pruner, windows_NT, batch_size, LevelsConfig(LevelKind.BUILT), folder)
        >>> store = BuiltLevels(loaded, grid, pruner, statistics, memory_bytes=10**9)
        >>> for units, gathered in calibrate_blocks(loaded, windows_NT, pruner, batch_size):
        ...     store.take(units, gathered)
        >>> store.load(allocation)

    Attributes:
        n_built: levels that were built so far.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        grid: LevelGrid,
        pruner: Pruner,
        statistics: KeptStatistics,
        memory_bytes: int,
        dense: DenseWeights | None = None,
    ) -> None:
        super().__init__(loaded, grid, pruner, dense)
        self.n_built = 0
        self._statistics, self._cache = statistics, statistics.cache
        self._recent = _RecentTensors(memory_bytes)
        self._ranks: dict[str, Tensor] = {}

    def share(self, n_processes: int) -> None:
        """Levels that are built from now on stay in memory alone, since a folder has one owner."""
        self._cache.freeze()
        self._recent.max_bytes //= n_processes

    def weight_at(self, unit: Unit, level: int) -> Tensor:
        """What the pruner makes of a unit's dense weight at a level [O, I], from memory, disk or anew. Not to be changed.

        Raises:
            PruningError: when the unit cannot be pruned so; the message names it.
            SelfpruneError: when the disk is full.
        """
        if not level:
            return self.dense(unit.name)
        name = f"level-{unit.name}-{level}"
        weight_OI = self._recent.get(name)
        if weight_OI is not None:
            self._cache.touch(name)
            return weight_OI
        dense_OI = self.dense(unit.name)
        match self._cache.read(name):
            case [found_OI] if found_OI.shape == dense_OI.shape and found_OI.dtype is dense_OI.dtype:
                weight_OI = found_OI
            case _:
                weight_OI = self._build(unit, level)
                self._cache.write(name, [weight_OI])
        self._recent.put(name, weight_OI)
        return weight_OI

    def first_order_change(self, gradient_OI: Tensor, unit: Unit, denser: int) -> float:
        """As for masks, but the weights that stay change as well."""
        change_OI = self.weight_at(unit, denser).to(gradient_OI.device).float() - weight_view(self.loaded.model, unit).float()
        return float((gradient_OI.float() * change_OI).sum())

    def _take(self, units: Sequence[Unit], statistics: dict[str, Statistics]) -> None:
        """Keeps the statistics, which the pruner prepares in place.

        Raises:
            ConfigError: when neither memory nor disk may hold them.
            SelfpruneError: when the disk is full.
        """
        self._statistics.keep(statistics)

    def _build(self, unit: Unit, level: int) -> Tensor:
        dense_OI = self.dense(unit.name)
        with naming_unit(unit.name):
            statistics, items = self._statistics.of(unit.name), by_item(unit, dense_OI)
            pruned = self._pruner.prune(items, statistics, level, self._ranks_of(unit, items, statistics))
        weight_OI = dense_OI if pruned.weight_OI is None else pruned.weight_OI
        self.n_built += 1
        return weight_OI.masked_fill(~spread(unit, pruned.kept), 0).contiguous().cpu()

    def _ranks_of(self, unit: Unit, items: Tensor, statistics: Statistics) -> Tensor | None:
        """The order of a unit's structures, found once, for all levels; of single weights it would take too much room."""
        if unit.item is Item.WEIGHT:
            return None
        if unit.name not in self._ranks:
            self._ranks[unit.name] = self._pruner.ranks(items, statistics)
        return self._ranks[unit.name]


class _RecentTensors:
    """Copies of tensors in main memory, the least recently used of which go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._tensors: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, name: str) -> Tensor | None:
        if name in self._tensors:
            self._tensors.move_to_end(name)
        return self._tensors.get(name)

    def put(self, name: str, tensor: Tensor) -> None:
        if tensor.nbytes > self.max_bytes:
            return
        while self.n_bytes + tensor.nbytes > self.max_bytes:
            self.n_bytes -= self._tensors.popitem(last=False)[1].nbytes
        # a tensor that is mapped from a file would keep the file's space after its eviction
        self._tensors[name] = tensor.to("cpu", copy=True)
        self.n_bytes += tensor.nbytes


def open_statistics(
    loaded: LoadedModel, grid: LevelGrid, pruner: Pruner, windows_NT: Tensor, batch_size: int, config: LevelsConfig, folder: Path
) -> KeptStatistics:
    """An empty keeper of statistics, whose cache holds the levels that an earlier process built from the very same things.

    Args:
        loaded: the dense model.
        grid: units and their levels.
        pruner: makes the levels.
        windows_NT: calibration windows.
        batch_size: windows per forward pass, which decides the order of summation.
        config: bounds and folder.
        folder: of the run.

    Raises:
        ConfigError: when the folder cannot be used, or its bound has no room for one level of the largest unit.
        SelfpruneError: when the disk is full.
    """
    origin = _origin(loaded, grid, pruner, windows_NT, batch_size)
    cache_folder = config.path(folder)
    if config.folder:  # it outlives the run, and others of other seeds, models and pruners keep theirs beside
        cache_folder /= hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]
    max_bytes = min(int(config.cache_gb * 1e9), _room(loaded, cache_folder))
    sizes = {unit.name: file_bytes([weight_view(loaded.model, unit)]) for unit in grid.units}
    largest = max(sizes, key=lambda name: sizes[name])
    needed = sizes[largest] + len(json.dumps(origin, indent=2)) + 1
    if needed > max_bytes:
        raise ConfigError(
            f"search.levels.cache_gb={config.cache_gb:g} has no room for a single level: the largest unit, {largest}, needs "
            f"{needed:,} bytes, and the bound, with what is free on the disk of {cache_folder}, comes to {max_bytes:,}; give at "
            f"least {math.ceil(needed / 1e4) / 1e5:g}, better room for all the levels that a search goes to and fro between, or "
            "take search.levels.kind=MASKS"
        )
    cache = TensorCache(cache_folder, max_bytes, origin)
    return KeptStatistics(cache, int(config.statistics_gb * 1e9), sizes[largest], pruner.prepare)


def _room(loaded: LoadedModel, cache_folder: Path) -> int:
    """Bytes that levels may take of a disk: what they have and nine tenths of what is free beside the pruned model."""
    n_model_bytes = sum(parameter.nbytes for parameter in loaded.model.parameters())
    n_own_bytes = folder_bytes(cache_folder) if cache_folder.is_dir() else 0
    return n_own_bytes + max(0, int(0.9 * (free_bytes(cache_folder) - n_model_bytes)))


def _origin(loaded: LoadedModel, grid: LevelGrid, pruner: Pruner, windows_NT: Tensor, batch_size: int) -> dict[str, Any]:
    """Everything that decides the bits of a level."""
    named = [*loaded.model.named_parameters(), *loaded.model.named_buffers()]
    return {
        "model": _hash([("config", _text(loaded.model.config.to_json_string(use_diff=False))), *named]),
        "calibration": _hash([("windows", windows_NT)]),
        "pruner": repr(pruner),
        "levels": _hash([("levels", _text(json.dumps({name: list(levels.items) for name, levels in grid.levels.items()})))]),
        "batch_size": batch_size,
        "versions": {"selfprune": __version__, "torch": torch.__version__},
        "device": str(loaded.device),
    }


def _text(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _hash(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()
