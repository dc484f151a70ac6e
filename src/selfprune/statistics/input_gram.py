"""The inner products of all pairs of input channels, which need the upper triangle of a matrix only.

Shape suffixes: I in, G groups of output rows with an input of their own, K tokens.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

N_PANELS = 8
"""Bands of a Gram matrix; only those on and above the diagonal are computed, 9/16 of the work."""


class InputGram:
    """Σ_tokens x xᵀ of the inputs in fp32: the Hessian of a layer's squared output error, up to a factor.

    Attributes:
        n_sequences: the sequences that it comes from, all batches together.
    """

    def __init__(self, n_row_groups: int, n_in: int, n_sequences: int) -> None:
        self.n_sequences = n_sequences
        self._shape = (n_row_groups, n_in, n_in)
        self._upper_GII = torch.zeros(0)
        self._is_mirrored = True

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Adds the outer products of inputs [..., I]; the lower triangle waits until it is asked for."""
        upper_GII = self._allocated(inputs.device)
        self._is_mirrored = False
        inputs_KI = inputs.reshape(-1, inputs.shape[-1]).float()
        n_in = inputs_KI.shape[1]
        width = max(1, -(-n_in // N_PANELS))
        for start in range(0, n_in, width):
            band_II = upper_GII[row_group, start : start + width, start:]
            band_II.addmm_(inputs_KI[:, start : start + width].T, inputs_KI[:, start:])

    def sums(self) -> Tensor:
        """Σ x xᵀ [G, I, I], symmetric; zeros where nothing was seen."""
        sums_GII = self._allocated(torch.device("cpu"))
        if not self._is_mirrored:
            for gram_II in sums_GII:
                mirror_in_place(gram_II)
            self._is_mirrored = True
        return sums_GII

    def means(self) -> Tensor:
        """s_j = (1/N) Σ_tokens x_j² [G, I], which is the diagonal; zero where nothing was seen."""
        return self.sums().diagonal(dim1=1, dim2=2) / self.n_sequences

    def unseen(self) -> Tensor:
        """True where no input other than zero came [G]."""
        return ~self._allocated(torch.device("cpu")).diagonal(dim1=1, dim2=2).any(dim=1)

    def tensors(self) -> list[Tensor]:
        """The sums."""
        return [self._upper_GII]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "InputGram":
        """A copy with other sums."""
        copied = copy.copy(self)
        copied._upper_GII = tensors[0]
        return copied

    def _allocated(self, device: torch.device) -> Tensor:
        """The sums so far, zeros on this device before the first; large, and therefore made only when needed."""
        if not self._upper_GII.numel():
            self._upper_GII = torch.zeros(self._shape, device=device)
        return self._upper_GII

    def _release(self) -> Tensor:
        """Hands the sums over; the upper triangle holds them."""
        sums_GII, self._upper_GII = self._allocated(torch.device("cpu")), torch.zeros(0)
        return sums_GII


def mirror_in_place(gram_II: Tensor) -> None:
    """Copies the upper triangle onto the lower one, band by band."""
    n_in = len(gram_II)
    width = max(1, -(-n_in // N_PANELS))
    for start in range(0, n_in, width):
        stop = min(start + width, n_in)
        corner_II = gram_II[start:stop, start:stop]
        corner_II.copy_(corner_II.triu() + corner_II.triu(1).T)
        gram_II[stop:, start:stop] = gram_II[start:stop, stop:].T
