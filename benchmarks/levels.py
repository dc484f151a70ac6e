"""Times levels as masks beside levels that the pruner builds, on a random Llama, in one run.

    python benchmarks/levels.py
    python benchmarks/levels.py --width 2048 --pruner alps --n-levels 2

A level here is all units of the model at one sparsity. `built` is its first use, `disk` reads it back, `memory` finds it at
hand; each is a whole `load`, which for `masks` is a comparison and a copy. Ratios are to `masks`.

Shape suffixes: N sequences, T tokens.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from random_llama import random_llama, synchronise
from rich.console import Console
from rich.table import Table

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation
from selfprune.configs.methods import find_methods
from selfprune.levels.built_levels import BuiltLevels, open_statistics
from selfprune.levels.level_store import LevelStore
from selfprune.levels.levels_config import LevelKind, LevelsConfig
from selfprune.levels.mask_levels import MaskLevels, number_dtype
from selfprune.pruning.calibration import calibrate_blocks
from selfprune.statistics.kept import KeptStatistics
from selfprune.storage.disk import folder_bytes

VOCAB_SIZE = 512
UNBOUNDED_GB = 1e6


def seconds_of_loads(store: LevelStore, levels: list[Allocation]) -> float:
    """Mean seconds of bringing the dense model to a level."""
    total = 0.0
    for level in levels:
        store.restore()
        synchronise(store.loaded.device)
        start = time.perf_counter()
        store.load(level)
        synchronise(store.loaded.device)
        total += time.perf_counter() - start
    store.restore()
    return total / len(levels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--n-blocks", type=int, default=2)
    parser.add_argument("--pruner", default="sparsegpt", choices=sorted(find_methods("pruner")))
    parser.add_argument("--n-levels", type=int, default=4)
    parser.add_argument("--n-sequences", type=int, default=8)
    parser.add_argument("--n-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    measure(parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """Measures both stores and prints their table."""
    device = torch.device(arguments.device)
    loaded = random_llama(arguments.width, arguments.n_blocks, VOCAB_SIZE, getattr(torch, arguments.dtype), device)
    windows_NT = torch.randint(VOCAB_SIZE, (arguments.n_sequences, arguments.n_tokens), device=device)
    pruner = find_methods("pruner")[arguments.pruner]()
    grid = LevelGrid.with_constant_step(loaded.units, 0.05)
    fractions = [0.4 + 0.4 * i / arguments.n_levels for i in range(arguments.n_levels)]
    levels = [
        {unit.name: round(fraction * grid.levels[unit.name].n_steps) * grid.levels[unit.name].items[1] for unit in grid.units}
        for fraction in fractions
    ]

    def filled(store: LevelStore) -> LevelStore:
        for units, statistics in calibrate_blocks(loaded, windows_NT, pruner, batch_size=4):
            store.take(units, statistics)
        return store

    def open_built(folder: Path, memory_bytes: int) -> tuple[LevelStore, KeptStatistics]:
        config = LevelsConfig(LevelKind.BUILT, cache_gb=UNBOUNDED_GB)
        statistics = open_statistics(loaded, grid, pruner, windows_NT, 4, config, folder)
        return filled(BuiltLevels(loaded, grid, pruner, statistics, memory_bytes)), statistics

    rows = {"masks": seconds_of_loads(filled(MaskLevels(loaded, grid, pruner)), levels)}
    with tempfile.TemporaryDirectory() as name:
        built, statistics = open_built(Path(name), memory_bytes=0)
        n_before = folder_bytes(Path(name))
        rows |= {"built": seconds_of_loads(built, levels), "disk": seconds_of_loads(built, levels)}
        n_level_bytes = (folder_bytes(Path(name)) - n_before) / len(levels)
        # finds the levels of the first on disk, and remembers them
        remembering, _ = open_built(Path(name), memory_bytes=int(UNBOUNDED_GB * 1e9))
        seconds_of_loads(remembering, levels)
        rows |= {"memory": seconds_of_loads(remembering, levels)}
    n_mask_bytes = sum(unit.n_weights * number_dtype(grid.levels[unit.name].n_steps).itemsize for unit in grid.units)
    print_table(arguments, rows, n_level_bytes, grid.n_weights(), n_mask_bytes, statistics.n_memory_bytes)


def print_table(
    arguments: argparse.Namespace,
    rows: dict[str, float],
    n_level_bytes: float,
    n_weights: int,
    n_mask_bytes: int,
    n_statistics_bytes: int,
) -> None:
    """Seconds and bytes per level and their ratios, then what is kept once for all levels."""
    table = Table(
        title=f"{arguments.pruner}, width {arguments.width}, {arguments.n_blocks} blocks, {n_weights:,} weights, "
        f"{arguments.dtype}, {arguments.device}, {torch.get_num_threads()} threads"
    )
    for column in ("levels", "seconds per level", "ratio", "bytes per level", "bytes per weight"):
        table.add_column(column, justify="right")
    for name, seconds in rows.items():
        n_bytes = 0 if name == "masks" else n_level_bytes
        ratio = seconds / rows["masks"]
        table.add_row(name, f"{seconds:.4f}", f"{ratio:.1f}x", f"{n_bytes:,.0f}", f"{n_bytes / n_weights:.2f}")
    console = Console(width=120)
    console.print(table)
    console.print(
        f"Once for all levels: {n_mask_bytes:,} bytes for masks; statistics {n_statistics_bytes:,} bytes in memory for built "
        f"ones, {n_statistics_bytes / n_mask_bytes:.2f} times as much."
    )


if __name__ == "__main__":
    main()
