"""How much experts put out for the tokens that are sent to them, each by the weight that its router gives it.

Shape suffixes: K tokens, G experts.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor


class RoutedOutputs:
    """Σ_tokens g · ‖f(x)‖ of each expert, and the number of tokens, in fp32; it is fed these products and not inputs.

    Attributes:
        totals_G: the sums.
        n_tokens_G: the tokens.
    """

    def __init__(self, n_experts: int) -> None:
        self.totals_G = torch.zeros(n_experts)
        self.n_tokens_G = torch.zeros(n_experts)

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Adds the products [K, 1] of an expert's tokens."""
        self.totals_G, self.n_tokens_G = self.totals_G.to(inputs.device), self.n_tokens_G.to(inputs.device)
        self.totals_G[row_group] += inputs.float().sum()
        self.n_tokens_G[row_group] += len(inputs)

    def means_of_experts(self) -> Tensor:
        """The mean over its tokens [G]; zero of an expert that no token was sent to."""
        return self.totals_G / self.n_tokens_G.clamp(min=1)

    def unseen(self) -> Tensor:
        """True where no token came [G]."""
        return self.n_tokens_G == 0

    def means(self) -> None:
        """The inputs themselves are not gathered."""

    def tensors(self) -> list[Tensor]:
        """The sums and the numbers of tokens."""
        return [self.totals_G, self.n_tokens_G]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "RoutedOutputs":
        """A copy with other sums and numbers."""
        copied = copy.copy(self)
        copied.totals_G, copied.n_tokens_G = tensors
        return copied
