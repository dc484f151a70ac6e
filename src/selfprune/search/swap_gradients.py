"""Bracketed swap gradients: what every unit's next levels are worth, from two backward passes.

With G the gradient of the score by the weights of the sparse model and ΔW their change when a unit goes some levels down, Σ G·ΔW
is the change of the score to first order. For removals the same estimate at the present model is wrong, because removed weights
carry curvature; so they are valued as restorations, at the model in which every unit lost as many levels more.

Shape suffixes: O out, I in.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from selfprune.allocations.unit import Allocation, Unit
from selfprune.models.block_gradients import backward_blocks
from selfprune.models.block_walk import windows_per_pass
from selfprune.proposers.move_values import MoveValues
from selfprune.search.scoring import Scorer, digest
from selfprune.storage.recorded_files import Score, Seconds

FORWARD_PASSES = 4
"""What a gradient counts as, in forward passes: one, another block by block, and a backward pass that takes as long as two."""


class Falls(TypedDict):
    """What the journal keeps of a gradient: unit name -> fall of the score per level, for either direction."""

    restoring: dict[str, Score]
    removing: dict[str, Score]
    seconds: Seconds


@dataclass
class SwapGradients:
    """The move values of one search; what a resumed run had measured is read back.

    Attributes:
        scorer: model, levels and search windows.
        max_tokens: what gradients may still cost.
        was_refused: whether some were too dear since tokens were granted last.
    """

    scorer: Scorer
    max_tokens: int = field(default=sys.maxsize, init=False)
    was_refused: bool = field(default=False, init=False)
    _known: dict[tuple[int, ...], MoveValues] = field(default_factory=dict, init=False)

    @property
    def n_windows(self) -> int:
        """Windows of the search split."""
        return self.scorer.n_windows

    def __call__(self, allocation: Allocation, bracket: float, start: int, n_windows: int) -> MoveValues:
        """See `MoveOracle`."""
        windows = [(start + i) % self.n_windows for i in range(min(n_windows, self.n_windows))]
        key = {"gradients": digest(allocation, self.scorer.grid), "bracket": bracket, "windows": windows}
        record = self.scorer.journal.once(key, lambda: self._measure(allocation, bracket, windows), Falls, self._fault)
        self.scorer.seconds += record["seconds"]
        n_tokens = self._n_tokens(n_windows)
        self.max_tokens -= n_tokens
        values = MoveValues(record["restoring"], record["removing"], n_tokens)
        self._known[self.scorer.grid.genome(allocation)] = replace(values, n_tokens=0)
        return values

    def grant(self, max_tokens: int) -> None:
        """Says what gradients may cost from now on; a search does, before it asks for proposals."""
        self.max_tokens, self.was_refused = max_tokens, False

    def affords(self, n_windows: int, n_times: int = 1) -> bool:
        """See `MoveOracle`."""
        is_paid = n_times * self._n_tokens(n_windows) <= self.max_tokens
        self.was_refused = self.was_refused or not is_paid
        return is_paid

    def known(self, allocation: Allocation) -> MoveValues | None:
        """See `MoveOracle`."""
        return self._known.get(self.scorer.grid.genome(allocation))

    def _fault(self, record: Falls) -> str:
        units = {unit.name for unit in self.scorer.grid.units}
        strange = sorted((record["restoring"].keys() | record["removing"].keys()) - units)
        return f"{strange[0]!r} is no unit of the model" if strange else ""

    def _n_tokens(self, n_windows: int) -> int:
        return n_look_tokens(min(n_windows, self.n_windows), self.scorer.n_tokens_per_window)

    def _measure(self, allocation: Allocation, bracket: float, windows: Sequence[int]) -> dict[str, Any]:
        began = time.perf_counter()
        denser, sparser = self.scorer.grid.bracket(allocation, bracket)
        restoring = self._falls(allocation, denser, windows)
        removing = self._falls(sparser, allocation, windows)
        return {"restoring": restoring, "removing": removing, "seconds": round(time.perf_counter() - began, 6)}

    def _falls(self, allocation: Allocation, denser: Allocation, windows: Sequence[int]) -> dict[str, float]:
        """Unit name -> fall of the mean score per level, were the unit's level that of `denser`; those that differ alone."""
        store, grid = self.scorer.store, self.scorer.grid
        store.load(allocation)
        falls = {unit.name: 0.0 for unit in grid.units if denser[unit.name] < allocation[unit.name]}

        def add(unit: Unit, gradient_OI: Tensor) -> None:
            if unit.name not in falls:
                return
            low, high = denser[unit.name], allocation[unit.name]
            change = store.change_along(gradient_OI, unit, low)
            falls[unit.name] -= change / len(windows) * grid.levels[unit.name].step / (high - low)

        # in passes of a size of their own, so that no sum depends on how many windows search.batch_size lets share one
        n_at_once = windows_per_pass(self.scorer.n_tokens_per_window)
        for start in range(0, len(windows), n_at_once):
            tokens_NT, loss = self.scorer.evaluator.loss(windows[start : start + n_at_once])
            backward_blocks(store.loaded, tokens_NT, add, loss)
        return falls


def n_look_tokens(n_windows: int, n_tokens_per_window: int) -> int:
    """Tokens that the values of moves at one allocation count as: two gradients on so many windows."""
    return 2 * FORWARD_PASSES * n_windows * n_tokens_per_window
