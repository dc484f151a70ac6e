"""Times a race of EvoPress' mutations: with prefix reuse, without it, and in a plain loop that loads levels from files.

    python benchmarks/search.py
    python benchmarks/search.py --width 4096 --n-blocks 32 --vocabulary 32000 --n-windows 1 --n-tokens 2048 --dtype bfloat16

All three, in one run, score the same children of one parent on the same windows, and begin with the model at the parent's levels.
The plain loop is how the published implementation works: one file per unit and level, a file is read whenever a unit's level
changes, every child runs through the whole model, and the dense model's logits are kept whole. `ideal` is what prefix reuse could
reach: every block of the tree of these children's prefixes once, and embedding, head and score once per child.

Shape suffixes: N windows, T tokens, V vocabulary.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from random_llama import random_llama, synchronise
from rich.console import Console
from rich.table import Table
from torch import Tensor

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Allocation
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.levels.level_store import LevelStore
from selfprune.levels.mask_levels import MaskLevels
from selfprune.models.loading import LoadedModel
from selfprune.models.units import weight_view
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.searches.evopress import EvoPress
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.search.bench import Bench, block_versions
from selfprune.search.ladder import Ladder
from selfprune.search.racing import Racer
from selfprune.search.scoring import Scorer
from selfprune.statistics.base import NoStatistics
from selfprune.storage.journal import Journal
from selfprune.timing.machine import peak_memory_bytes

SPARSITY = 0.7


class PlainLoop:
    """EvoPress' search step without any sharing: files of levels, whole passes, whole logits."""

    def __init__(self, store: LevelStore, windows_NT: Tensor, parent: Allocation, folder: Path) -> None:
        self.store, self.parent, self.folder = store, parent, folder
        self.model = store.loaded.model
        self.windows_NT = windows_NT.to(store.loaded.device)
        store.restore()
        self.dense_NTV = self.model(input_ids=self.windows_NT, use_cache=False).logits
        store.load(parent)
        self.levels = dict(parent)

    def write(self, children: list[Allocation]) -> None:
        """Writes the file of every level that is read between the children, before the clock starts."""
        for unit in self.store.grid.units:
            levels = {child[unit.name] for child in children} | {self.parent[unit.name]}
            for level in levels if len(levels) > 1 else ():
                torch.save(self.store.weight_at(unit, level).cpu(), self._path(unit.name, level))

    def score(self, child: Allocation) -> Tensor:
        """KL per window [N]."""
        for unit in self.store.grid.units:
            if child[unit.name] != self.levels[unit.name]:
                weight_view(self.model, unit).copy_(torch.load(self._path(unit.name, child[unit.name])))
        self.levels = dict(child)
        logits_NTV = self.model(input_ids=self.windows_NT, use_cache=False).logits
        logp_NTV, logq_NTV = self.dense_NTV.float().log_softmax(-1), logits_NTV.float().log_softmax(-1)
        return (logp_NTV.exp() * (logp_NTV - logq_NTV)).sum(-1).mean(-1)

    def _path(self, name: str, level: int) -> Path:
        return self.folder / f"{name}-{level}.pt"


def n_tree_nodes(children: list[Allocation], grid: LevelGrid) -> int:
    """Blocks that differ in some block before or at them, counted by brute force."""
    versions = [tuple(block_versions(child, grid)) for child in children]
    return len({path[: depth + 1] for path in versions for depth in range(len(path))})


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    loaded = random_llama(arguments.width, arguments.n_blocks, arguments.vocabulary, getattr(torch, arguments.dtype), device)
    grid = LevelGrid.with_constant_step(loaded.units, 0.05)
    store = MaskLevels(loaded, grid, Magnitude())
    store.take(grid.units, {unit.name: NoStatistics() for unit in grid.units})
    windows_NT = torch.randint(arguments.vocabulary, (arguments.n_windows, arguments.n_tokens))
    space = SearchSpace(grid, Target.in_weights(grid, round(SPARSITY * grid.n_weights())))
    proposals = EvoPress().build(space, 0, None).ask(arguments.n_children)
    children = [proposal.allocation for proposal in proposals]
    parent = children[0]

    def race(prefix_bytes: int, folder: Path) -> tuple[float, WindowEvaluator]:
        store.restore()
        evaluator = WindowEvaluator(
            {"kl": KLDivergence()}, loaded.model, loaded.blocks, windows_NT, arguments.n_windows, prefix_bytes
        )
        store.load(parent)
        scorer = Scorer(Bench(store, evaluator), Journal(folder / f"{prefix_bytes}.jsonl"))
        racer = Racer("main", scorer, Ladder([arguments.n_windows], []), 0)
        evaluator.forward.n_blocks_run = evaluator.forward.n_blocks_asked = 0
        return timed(lambda: racer.race(0, proposals), device), evaluator

    rows: list[tuple[str, float, str]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        with_reuse, evaluator = race(arguments.prefix_mb * 10**6, Path(name))
        # counted for every window, all of which share a pass
        counted = evaluator.forward.n_blocks_run, evaluator.forward.n_blocks_asked
        run, asked = (n // arguments.n_windows for n in counted)
        without, _ = race(0, Path(name))
        plain = PlainLoop(store, windows_NT, parent, Path(name))
        plain.write(children)
        plain_seconds = timed(lambda: [plain.score(child) for child in children], device)
    nodes = n_tree_nodes(children, grid)
    block_seconds = seconds_of_a_block(loaded, windows_NT)
    saved = (len(children) * len(loaded.blocks) - nodes) * block_seconds
    rows = [
        (
            "with prefix reuse",
            with_reuse,
            f"{run} blocks run of {asked}, the tree has {nodes}",
        ),
        ("without", without, ""),
        ("ideal", without - saved, "without, less the blocks that the tree shares"),
        ("plain loop", plain_seconds, "levels from files, whole logits"),
    ]
    table = Table(title=f"{len(children)} children, {arguments.n_windows} x {arguments.n_tokens} tokens, {arguments.device}")
    for column in ("", "seconds", "children per second", "plain loop / it", "without / it", ""):
        table.add_column(column)
    for label, seconds, note in rows:
        rate = f"{len(children) / seconds:.2f}"
        table.add_row(label, f"{seconds:.2f}", rate, f"{plain_seconds / seconds:.2f}", f"{without / seconds:.2f}", note)
    console = Console(width=160)
    console.print(table)
    console.print(
        f"peak memory {peak_memory_bytes(loaded.device) / 1e9:.2f} GB, hidden states bounded at {arguments.prefix_mb} MB"
    )


def seconds_of_a_block(loaded: LoadedModel, windows_NT: Tensor) -> float:
    """Seconds of one decoder block on the windows: those of all blocks, timed inside a whole pass, over their number."""
    marks: list[float] = []

    def mark(*_: object) -> None:
        synchronise(loaded.device)
        marks.append(time.perf_counter())

    hooks = [loaded.blocks[0].register_forward_pre_hook(mark), loaded.blocks[-1].register_forward_hook(mark)]
    for _ in range(3):
        loaded.model(input_ids=windows_NT.to(loaded.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    spans = sorted(end - start for start, end in zip(marks[::2], marks[1::2], strict=True))
    return spans[1] / len(loaded.blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--n-blocks", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--n-children", type=int, default=32)
    parser.add_argument("--n-windows", type=int, default=4)
    parser.add_argument("--n-tokens", type=int, default=256)
    parser.add_argument("--prefix-mb", type=int, default=1024)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=None, help="where the levels' files go; the system's by default")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
