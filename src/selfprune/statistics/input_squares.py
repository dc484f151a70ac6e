"""The squares of the inputs, channel by channel.

Shape suffixes: N sequences, T tokens, I in, G groups of output rows with an input of their own.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor


def as_sequences(inputs: Tensor) -> Tensor:
    """Inputs [..., T, I] as fp32 sequences [N, T, I]; the tokens of an expert [T, I] are one sequence."""
    return inputs.float().reshape(-1, *(inputs[None] if inputs.ndim == 1 else inputs).shape[-2:])


class InputSquares:
    """Token-summed squares of every input channel in fp32, per sequence (Wanda, arXiv 2306.11695).

    Attributes:
        sums_GI: the sums over all tokens so far.
        n_sequences: the sequences they come from, all batches together.
    """

    def __init__(self, n_row_groups: int, n_in: int, n_sequences: int) -> None:
        self.sums_GI = torch.zeros(n_row_groups, n_in)
        self.n_sequences = n_sequences

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Adds the squares of inputs [..., I]."""
        self.sums_GI = self.sums_GI.to(inputs.device)
        self.sums_GI[row_group] += inputs.reshape(-1, inputs.shape[-1]).float().square().sum(dim=0)

    def means(self) -> Tensor:
        """s_j = (1/N) Σ_tokens x_j² [G, I]; zero where nothing was seen."""
        return self.sums_GI / self.n_sequences

    def unseen(self) -> Tensor:
        """True where no input other than zero came [G]."""
        return ~self.sums_GI.any(dim=1)

    def tensors(self) -> list[Tensor]:
        """The sums of squares."""
        return [self.sums_GI]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "InputSquares":
        """A copy with other sums."""
        copied = copy.copy(self)
        copied.sums_GI = tensors[0]
        return copied
