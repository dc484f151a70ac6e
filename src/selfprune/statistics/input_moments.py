"""The mean and the variance of the inputs, channel by channel.

Shape suffixes: I in, N sequences, T tokens, G groups of output rows with an input of their own.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from selfprune.statistics.input_squares import InputSquares, as_sequences


class InputMoments(InputSquares):
    """Token-summed squares and sums of every input channel, and its variance within a sequence, all in fp32.

    Attributes:
        totals_GI: the sums of the inputs over all tokens so far.
        deviations_GI: the squares of the distances from the mean of the sequence, over all tokens so far.
        n_tokens_G: the tokens so far.
    """

    def __init__(self, n_row_groups: int, n_in: int, n_sequences: int) -> None:
        super().__init__(n_row_groups, n_in, n_sequences)
        self.totals_GI = torch.zeros(n_row_groups, n_in)
        self.deviations_GI = torch.zeros(n_row_groups, n_in)
        self.n_tokens_G = torch.zeros(n_row_groups)

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Adds sequences [..., T, I]; the tokens of an expert [T, I] count as one sequence."""
        super().update(inputs, row_group)
        self.totals_GI = self.totals_GI.to(inputs.device)
        self.deviations_GI = self.deviations_GI.to(inputs.device)
        if not inputs.numel():
            return
        inputs_NTI = as_sequences(inputs)
        n_sequences, n_tokens, _ = inputs_NTI.shape
        self.totals_GI[row_group] += inputs_NTI.sum(dim=(0, 1))
        self.deviations_GI[row_group] += n_tokens * inputs_NTI.var(dim=1, correction=0).sum(dim=0)
        self.n_tokens_G[row_group] += n_sequences * n_tokens

    def mean_totals(self) -> Tensor:
        """m_j = (1/N) Σ_tokens x_j [G, I]; zero where nothing was seen."""
        return self.totals_GI / self.n_sequences

    def variances(self) -> Tensor:
        """The mean over tokens of the biased variance of their sequence [G, I]; zero where nothing was seen."""
        return self.deviations_GI / self.n_tokens_G.clamp(min=1)[:, None].to(self.deviations_GI.device)

    def tensors(self) -> list[Tensor]:
        """The sums of squares, of inputs and of deviations, and the number of tokens."""
        return [*super().tensors(), self.totals_GI, self.deviations_GI, self.n_tokens_G]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "InputMoments":
        """A copy with other sums and numbers."""
        copied = copy.copy(self)
        copied.sums_GI, copied.totals_GI, copied.deviations_GI, copied.n_tokens_G = tensors
        return copied
