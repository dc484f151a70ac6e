"""What a pruner chooses by, together with what a recovery needs to know of the same inputs.

Shape suffixes: G groups of output rows with an input of their own, I in.
"""

import copy
from collections.abc import Sequence

from torch import Tensor

from selfprune.statistics.base import Statistics
from selfprune.statistics.input_gram import InputGram


class StatisticsPair:
    """Statistics that see the same inputs.

    Args:
        own: what the pruner chooses by.
        other: what the recovery needs.
        own_sees_inputs: whether the pruner's own are fed inputs; of gradients they are told elsewhere.
    """

    def __init__(self, own: Statistics, other: Statistics, own_sees_inputs: bool = True) -> None:
        self.own, self.other, self._own_sees_inputs = own, other, own_sees_inputs

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Adds inputs [..., I]."""
        if self._own_sees_inputs:
            self.own.update(inputs, row_group)
        self.other.update(inputs, row_group)

    def unseen(self) -> Tensor:
        """True where nothing is known to the pruner [G]."""
        return self.own.unseen()

    def means(self) -> Tensor | None:
        """s_j = (1/N) Σ_tokens x_j² [G, I]."""
        return self.other.means()

    def tensors(self) -> list[Tensor]:
        """Those of the pruner's own statistics, then the others."""
        return [*self.own.tensors(), *self.other.tensors()]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "StatisticsPair":
        """A copy that holds these tensors."""
        n_own, copied = len(self.own.tensors()), copy.copy(self)
        copied.own = self.own.with_tensors(tensors[:n_own])
        copied.other = self.other.with_tensors(tensors[n_own:])
        return copied


def gathers_gram(statistics: Statistics) -> bool:
    """Whether the inner products of the inputs are gathered, which costs more than all else."""
    parts = (statistics.own, statistics.other) if isinstance(statistics, StatisticsPair) else (statistics,)
    return any(isinstance(part, InputGram) for part in parts)
