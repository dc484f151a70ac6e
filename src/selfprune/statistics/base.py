"""The contract of what calibration gathers about a unit's input.

Shape suffixes: I in, G groups of output rows with an input of their own.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Statistics(Protocol):
    """An accumulator that sees a unit's inputs batch by batch, or, for pruners that need gradients, those window by window.

    Example:
        >>> statistics = InputSquares(n_row_groups=1, n_in=64, n_sequences=2)
        >>> statistics.update(torch.randn(2, 16, 64))
    """

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Adds inputs [..., I] that feed one group of output rows."""
        ...

    def unseen(self) -> Tensor:
        """True for the groups of output rows [G] of which nothing is known: no input other than zero, or no gradient, came."""
        ...

    def means(self) -> Tensor | None:
        """s_j = (1/N) Σ_tokens x_j² [G, I]; None where the inputs are not gathered."""
        ...

    def tensors(self) -> list[Tensor]:
        """All tensors that it holds, some of them empty, perhaps."""
        ...

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Statistics":
        """A copy that holds these tensors, in the order of `tensors`, in place of its own."""
        ...


class NoStatistics:
    """For pruners that look at weights alone."""

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Nothing to gather."""

    def unseen(self) -> Tensor:
        """Nothing had to be seen [1]."""
        return torch.zeros(1, dtype=torch.bool)

    def means(self) -> None:
        """No inputs were gathered."""

    def tensors(self) -> list[Tensor]:
        """None."""
        return []

    def with_tensors(self, tensors: Sequence[Tensor]) -> "NoStatistics":
        """The same."""
        return self
