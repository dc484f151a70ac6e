"""The gradients of the loss with respect to the weights, in place of inputs.

Shape suffixes: O out, I in, G groups of output rows with an input of their own.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor


class WeightGradients:
    """Sums over calibration windows of the loss gradient with respect to a unit's weights, to a power, in fp32.

    Args:
        n_row_groups: groups of output rows with inputs of their own.
        power: 1 for the gradient itself, 2 for its squares (the diagonal of the empirical Fisher information).
    """

    def __init__(self, n_row_groups: int, power: int) -> None:
        self.n_row_groups = n_row_groups
        self.power = power
        self.n_windows = 0
        self._sums_OI = torch.zeros(0)

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Adds the gradient [O, I] of one window."""
        self.n_windows += 1
        if not self._sums_OI.numel():
            self._sums_OI = torch.zeros(inputs.shape, device=inputs.device)
        self._sums_OI += inputs.float() if self.power == 1 else inputs.float().square()

    def mean(self) -> Tensor:
        """Mean over windows [O, I]."""
        assert self.n_windows, "no window was seen"
        return self._sums_OI / self.n_windows

    def unseen(self) -> Tensor:
        """True where every gradient was zero [G]."""
        return ~self._sums_OI.reshape(self.n_row_groups, -1).any(dim=1)

    def means(self) -> None:
        """Gradients came in place of inputs."""

    def tensors(self) -> list[Tensor]:
        """The sums."""
        return [self._sums_OI]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "WeightGradients":
        """A copy with other sums."""
        copied = copy.copy(self)
        copied._sums_OI = tensors[0]
        return copied
