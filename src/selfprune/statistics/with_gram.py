"""A pruner's own statistics together with the inner products of the inputs, from which readers are fitted anew.

Shape suffixes: G groups of output rows with an input of their own, I in.
"""

import copy
from collections.abc import Sequence

from torch import Tensor

from selfprune.statistics.base import Statistics
from selfprune.statistics.input_gram import InputGram


class WithGram:
    """Statistics that see the same inputs.

    Attributes:
        own: what the pruner chooses by.
        gram: Σ_tokens x xᵀ.
    """

    def __init__(self, own: Statistics, gram: InputGram) -> None:
        self.own, self.gram = own, gram

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Adds inputs [..., I] to both."""
        self.own.update(inputs, row_group)
        self.gram.update(inputs, row_group)

    def unseen(self) -> Tensor:
        """True where no input other than zero came [G]."""
        return self.gram.unseen()

    def means(self) -> Tensor:
        """s_j = (1/N) Σ_tokens x_j² [G, I]."""
        return self.gram.means()

    def tensors(self) -> list[Tensor]:
        """Those of the pruner's own statistics, and the Gram matrix last."""
        return [*self.own.tensors(), *self.gram.tensors()]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "WithGram":
        """A copy that holds these tensors."""
        copied = copy.copy(self)
        copied.own = self.own.with_tensors(tensors[:-1])
        copied.gram = self.gram.with_tensors(tensors[-1:])
        return copied
