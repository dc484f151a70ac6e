"""Bracketed swap gradients: what every unit's next levels are worth, from two backward passes, paid for in tokens; or looks."""

import math
import sys
from dataclasses import dataclass, field, replace

from selfprune.allocations.unit import Allocation
from selfprune.proposers.move_values import Look, MoveValues
from selfprune.search.scoring import Scorer, digest

FORWARD_PASSES = 4
"""What a gradient counts as, in forward passes: one, another block by block, and a backward pass that takes as long as two."""


@dataclass
class GradientValues:
    """The move values of one search; what a resumed run had measured is read back.

    Attributes:
        scorer: values moves on the search windows.
        max_tokens: what gradients and looks may still cost.
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
        falls = self.scorer.falls(allocation, bracket, windows)
        n_tokens = self._n_tokens(n_windows)
        self.max_tokens -= n_tokens
        values = MoveValues(falls["restoring"], falls["removing"], n_tokens)
        self._known[self.scorer.grid.genome(allocation)] = replace(values, n_tokens=0)
        return values

    def look(self, allocation: Allocation, n_windows: int) -> Look | None:
        """See `MoveOracle`."""
        windows = range(min(n_windows, self.n_windows))
        n_tokens = len(windows) * self.scorer.n_tokens_per_window
        if n_tokens > self.max_tokens:
            return None
        self.max_tokens -= n_tokens
        scores = self.scorer.recall({"look": digest(allocation, self.scorer.grid), "windows": [*windows]}, allocation, windows)
        return Look(math.fsum(scores) / len(scores), n_tokens)

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

    def _n_tokens(self, n_windows: int) -> int:
        return n_look_tokens(min(n_windows, self.n_windows), self.scorer.n_tokens_per_window)


def n_look_tokens(n_windows: int, n_tokens_per_window: int) -> int:
    """Tokens that the values of moves at one allocation count as: two gradients on so many windows."""
    return 2 * FORWARD_PASSES * n_windows * n_tokens_per_window
