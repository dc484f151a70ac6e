"""Where allocations are measured: a level store and the search windows, the only things of a search that touch the model.

Shape suffixes: O out, I in.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation, Unit
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.levels.level_store import LevelStore
from selfprune.models.blocks.gradients import backward_blocks
from selfprune.models.blocks.walk import windows_per_pass


@dataclass(frozen=True)
class Bench:
    """Brings the model to an allocation and looks at the windows; remembers nothing but what the model holds.

    Attributes:
        store: the levels.
        evaluator: of the search windows.

    Example:
        >>> Bench(store, evaluator).scores(allocation, windows=[0, 1])
        [0.31, 0.28]
    """

    store: LevelStore
    evaluator: WindowEvaluator

    @property
    def grid(self) -> LevelGrid:
        """The levels of the store."""
        return self.store.grid

    @property
    def n_windows(self) -> int:
        """Windows of the search split."""
        return self.evaluator.n_windows

    @property
    def n_tokens_per_window(self) -> int:
        """Tokens of every window."""
        return self.evaluator.n_tokens_per_window

    @property
    def dense_scores(self) -> Sequence[float]:
        """The scores of the dense model, window by window."""
        return self.evaluator.dense_scores

    def expect_scores(self, work: Sequence[tuple[Allocation, Sequence[int]]]) -> None:
        """Says of which allocations, on which windows, the scores will be asked next; nothing is done about it here."""

    def expect_falls(self, work: Sequence[tuple[Allocation, Allocation]], windows: Sequence[int]) -> None:
        """Says of which allocations, and denser ones, the falls will be asked next; nothing is done about it here."""

    def scores(self, allocation: Allocation, windows: Sequence[int]) -> list[float]:
        """The scores of an allocation on some windows, in their order.

        Args:
            allocation: what is measured.
            windows: which windows, by number.
        """
        self.store.load(allocation)
        return next(iter(self.evaluator.evaluate(block_versions(allocation, self.grid), windows).values()))

    def falls(self, allocation: Allocation, denser: Allocation, windows: Sequence[int]) -> dict[str, float]:
        """Unit name -> fall of the mean score per level, were the unit's level that of `denser`; those that differ alone.

        With G the gradient of the score by the weights at the allocation and ΔW their change on the way to `denser`, Σ G·ΔW is
        the change of the score to first order.

        Args:
            allocation: where the gradient is taken.
            denser: levels at or below those of the allocation.
            windows: which windows, by number.
        """
        parts = [self.part_of_falls(allocation, denser, part, len(windows)) for part in self.gradient_passes(windows)]
        return sum_of_parts(parts)

    def gradient_passes(self, windows: Sequence[int]) -> list[Sequence[int]]:
        """The windows of each backward pass, of a size that no setting decides: no sum depends on `search.batch_size`."""
        n_at_once = windows_per_pass(self.n_tokens_per_window)
        return [windows[start : start + n_at_once] for start in range(0, len(windows), n_at_once)]

    def part_of_falls(
        self, allocation: Allocation, denser: Allocation, windows: Sequence[int], n_windows: int
    ) -> dict[str, float]:
        """What one backward pass adds to the falls over `n_windows` windows.

        Args:
            allocation: where the gradient is taken.
            denser: levels at or below those of the allocation.
            windows: of the pass.
            n_windows: over which the falls are a mean.
        """
        self.store.load(allocation)
        falls = {unit.name: 0.0 for unit in self.grid.units if denser[unit.name] < allocation[unit.name]}

        def add(unit: Unit, gradient_OI: Tensor) -> None:
            if unit.name not in falls:
                return
            low, high = denser[unit.name], allocation[unit.name]
            change = self.store.first_order_change(gradient_OI, unit, low)
            falls[unit.name] -= change / n_windows * self.grid.levels[unit.name].step / (high - low)

        tokens_NT, loss = self.evaluator.loss(windows)
        backward_blocks(self.store.loaded, tokens_NT, add, loss)
        return falls

    def release(self) -> None:
        """Makes the model dense and forgets its hidden states, so that others may change it in place."""
        self.store.restore()
        self.evaluator.forward.clear()


def sum_of_parts(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The falls of all passes, added up in their order."""
    total = dict.fromkeys(parts[0], 0.0)
    for part in parts:
        total = {name: total[name] + fall for name, fall in part.items()}
    return total


def block_versions(allocation: Allocation, grid: LevelGrid) -> list[Hashable]:
    """The levels of each block's units, which say when two allocations share a block."""
    blocks: dict[int, list[int]] = {}
    for unit in grid.units:
        blocks.setdefault(unit.block, []).append(allocation[unit.name])
    return [tuple(blocks.get(block, ())) for block in range(max(blocks) + 1)]


def visiting_order(allocations: Sequence[Allocation], current: Allocation, grid: LevelGrid) -> list[int]:
    """An order that walks the tree of common prefixes depth first, beginning where the current allocation leads.

    Every node of the tree is then computed once, with the hidden states of a single path in memory.
    """
    path = block_versions(current, grid)
    versions = [block_versions(allocation, grid) for allocation in allocations]
    return sorted(range(len(versions)), key=lambda i: [(v != own, v) for v, own in zip(versions[i], path, strict=True)])
