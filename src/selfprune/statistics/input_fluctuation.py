"""How much the inputs fluctuate about their mean, sequence by sequence, as the code of FLAP gathers it (arXiv 2312.11983).

The mean is that of the sequences so far, and the first sequence, which has no mean before it, adds nothing: with more sequences
this nears the variance over all tokens.

Shape suffixes: I in, N sequences, T tokens, G groups of output rows with an input of their own.
"""

import copy
from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor

from selfprune.statistics.input_squares import InputSquares, as_sequences


class Metric(str, Enum):
    """How FLAP judges a column of a reader by them."""

    WIFV = "WIFV"
    """Weighted variance of the input."""
    IFV = "IFV"
    """Variance of the input."""
    WIFN = "WIFN"
    """Wanda's metric, averaged over the outputs."""


class InputFluctuation(InputSquares):
    """Token-summed squares, the running mean and the fluctuation about it of every input channel, all in fp32.

    Attributes:
        means_GI: of the inputs, the mean over the sequences so far of the mean over their tokens.
        fluctuations_GI: the mean over sequences of Σ_tokens (x − mean)².
        n_seen_G: the sequences so far.
    """

    def __init__(self, n_row_groups: int, n_in: int, n_sequences: int) -> None:
        super().__init__(n_row_groups, n_in, n_sequences)
        self.means_GI = torch.zeros(n_row_groups, n_in)
        self.fluctuations_GI = torch.zeros(n_row_groups, n_in)
        self.n_seen_G = torch.zeros(n_row_groups)

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Adds sequences [..., T, I], one after the other; the tokens of an expert [T, I] count as one sequence."""
        super().update(inputs, row_group)
        self.means_GI = self.means_GI.to(inputs.device)
        self.fluctuations_GI = self.fluctuations_GI.to(inputs.device)
        if not inputs.numel():
            return
        for inputs_TI in as_sequences(inputs):
            n = int(self.n_seen_G[row_group])
            mean_I, fluctuation_I = self.means_GI[row_group], self.fluctuations_GI[row_group]
            mean_I.mul_(n / (n + 1)).add_(inputs_TI.mean(dim=0) / (n + 1))
            if n:
                fluctuation_I.mul_((n - 1) / n).add_((inputs_TI - mean_I).square().sum(dim=0) / (n + 1))
            self.n_seen_G[row_group] += 1

    def tensors(self) -> list[Tensor]:
        """The sums of squares, the means, the fluctuations and the number of sequences."""
        return [*super().tensors(), self.means_GI, self.fluctuations_GI, self.n_seen_G]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "InputFluctuation":
        """A copy with other sums and numbers."""
        copied = copy.copy(self)
        copied.sums_GI, copied.means_GI, copied.fluctuations_GI, copied.n_seen_G = tensors
        return copied
