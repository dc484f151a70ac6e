"""The Hessian of a layer and its factor H = R·Rᵀ, R upper triangular, in the memory of one matrix.

The published SparseGPT takes the upper triangular U with H⁻¹ = UᵀU: it factorises H, inverts it and factorises the inverse. But
R = U⁻¹, and of U no more is needed than the blocks on its diagonal, which are the inverses of those of R: one factorisation is
enough. The inputs are gathered in reversed order; the lower Cholesky factor of that Hessian, read backwards, is R. It is made in
place in the lower triangle, panel by panel; the upper one keeps the sums, from which a factorisation that fails starts again with
more damping.

Shape suffixes: I in, G groups of output rows with an input of their own, B columns of a block, P columns of a panel.
"""

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from selfprune.errors import PruningError
from selfprune.statistics.input_gram import InputGram, mirror_in_place

logger = logging.getLogger(__name__)

PANEL_WIDTH = 512
"""Columns that are factorised together; what is held beside the matrix is a few panels."""
BAND_WIDTH = 128
"""Rows of the factor that are kept together."""
MAX_DAMPING = 1e3
"""Beyond this many times the mean diagonal, a Hessian is broken and not merely ill-conditioned."""


class HessianFactor(InputGram):
    """Gathers Σ x xᵀ; once asked for the factor, it holds that instead, and takes no more inputs.

    Args:
        n_row_groups: groups of output rows with inputs of their own.
        n_in: input width.
        n_sequences: calibration sequences in all.
        percent_damping: share of the mean diagonal that is added to the diagonal; tenfold more as long as that is too little.
    """

    def __init__(self, n_row_groups: int, n_in: int, n_sequences: int, percent_damping: float = 0.01) -> None:
        super().__init__(n_row_groups, n_in, n_sequences)
        self.percent_damping = percent_damping
        self._diagonal_GI = torch.zeros(0)
        self._bands: list[list[Tensor]] = []

    def update(self, inputs: Tensor, row_group: int = 0) -> None:
        """Adds the outer products of inputs [..., I], in reversed order."""
        assert not self._bands, "the factor was taken already"
        self._diagonal_GI = torch.zeros(0)
        super().update(inputs.flip(-1), row_group)

    def sums(self) -> Tensor:
        """Σ x xᵀ [G, I, I] in the order of the channels, as long as the factor was not taken."""
        assert not self._bands, "the factor took the place of the sums"
        return super().sums().flip(1, 2)

    def means(self) -> Tensor:
        """s_j = (1/N) Σ_tokens x_j² [G, I]; zero where nothing was seen."""
        return self._diagonal() / self.n_sequences

    def dead(self) -> Tensor:
        """True for the input channels [G, I] that were never other than zero."""
        return self._diagonal() == 0

    def unseen(self) -> Tensor:
        """True where no input other than zero came [G]."""
        return self.dead().all(dim=1)

    def block(self, group: int, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of R from column `start` on [B, I - start].

        Raises:
            PruningError: when the inputs were not finite, or no damping makes the Hessian positive definite.
        """
        self.factorise()
        bands = self._bands[group]
        first = start // BAND_WIDTH
        if stop <= (first + 1) * BAND_WIDTH:
            offset = first * BAND_WIDTH
            return bands[first][start - offset : stop - offset, start - offset :]
        # rows of several bands, of which the later ones begin further to the right
        pieces = []
        while start < stop:
            end = min(stop, (start // BAND_WIDTH + 1) * BAND_WIDTH)
            pieces.append(self.block(group, start, end))
            start = end
        width = pieces[0].shape[1]
        return torch.cat([torch.nn.functional.pad(piece_BI, (width - piece_BI.shape[1], 0)) for piece_BI in pieces])

    def inverse_diagonal(self) -> Tensor:
        """The diagonal of H⁻¹ [G, I], that is the column sums of U².

        Raises:
            PruningError: as `block` does.
        """
        self.factorise()
        sums_GI = torch.empty(self._shape[:2], device=self._bands[0][0].device)
        for sums_I, bands in zip(sums_GI, self._bands, strict=True):
            for start in range(0, len(sums_I), PANEL_WIDTH):
                stop = min(start + PANEL_WIDTH, len(sums_I))
                sums_I[start:stop] = _columns_of_inverse(bands, start, stop).square_().sum(dim=0)
        return sums_GI

    def tensors(self) -> list[Tensor]:
        """The sums, their diagonal and the factor, of which either the sums or the factor is empty."""
        return [*super().tensors(), self._diagonal_GI, *(band_BI for bands in self._bands for band_BI in bands)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "HessianFactor":
        """A copy with other sums, or another factor."""
        copied, bands = copy.copy(self), iter(tensors[2:])
        copied._upper_GII, copied._diagonal_GI = tensors[:2]
        copied._bands = [[next(bands) for _ in own] for own in self._bands]
        return copied

    def _diagonal(self) -> Tensor:
        """Σ x_j² [G, I]."""
        if not self._diagonal_GI.numel():
            self._diagonal_GI = self._allocated(torch.device("cpu")).diagonal(dim1=1, dim2=2).flip(-1).clone()
        return self._diagonal_GI

    def factorise(self) -> None:
        """Makes the factor, once, in place of the sums.

        Raises:
            PruningError: when the inputs were not finite, or no damping makes the Hessian positive definite.
        """
        if self._bands:
            return
        diagonal_GI, grams_GII = self._diagonal(), self._release()
        bands_of_groups = []
        for gram_II, diagonal_I in zip(grams_GII, diagonal_GI, strict=True):
            self._damp_and_factorise_in_place(gram_II, diagonal_I)
            bands_of_groups.append(_reversed_bands(gram_II))
        # only now, so that statistics that were refused are refused again
        self._bands = bands_of_groups

    def _damp_and_factorise_in_place(self, gram_II: Tensor, diagonal_I: Tensor) -> None:
        """Puts the Cholesky factor of a reversed Σ x xᵀ, whose upper triangle is given, into the lower one."""
        # twice the sum, because damping adds to the diagonal
        if not torch.isfinite(2 * diagonal_I.sum()):
            raise PruningError(
                "the scores of a unit are not finite: its calibration inputs hold NaN or infinity; load the model in a wider "
                "dtype (model.dtype=FLOAT32) or check the checkpoint"
            )
        # The published Hessian is 2/N times this; there a dead input gets the diagonal 1, which the mean below includes.
        base_I = torch.where(diagonal_I == 0, self.n_sequences / 2, diagonal_I).flip(0)
        damping = self.percent_damping
        while damping <= MAX_DAMPING:
            mirror_in_place(gram_II)
            gram_II.diagonal().copy_(base_I + damping * base_I.mean())
            if _factorise_in_place(gram_II):
                return
            damping = max(10 * damping, 1e-6)
            logger.warning("a Hessian is not positive definite; its damping is raised to %g of the mean diagonal", damping)
        raise PruningError(
            f"the Hessian of a unit is not positive definite even with a damping of {MAX_DAMPING:g} times its mean diagonal; "
            "check its calibration inputs"
        )


def _factorise_in_place(matrix_II: Tensor) -> bool:
    """Turns the lower triangle of a symmetric matrix into its Cholesky factor L; what lies above the diagonal stays.

    Returns:
        whether the matrix is positive definite.
    """
    n_in = len(matrix_II)
    for start in range(0, n_in, PANEL_WIDTH):
        stop = min(start + PANEL_WIDTH, n_in)
        corner_PP = matrix_II[start:stop, start:stop]
        lower_PP, info = torch.linalg.cholesky_ex(corner_PP)
        if info != 0:
            return False
        corner_PP.copy_(lower_PP + corner_PP.triu(1))
        # L21 = A21 L11⁻ᵀ, and the rest A22 − L21 L21ᵀ, of which the lower triangle will do and the upper one must not change
        below_IP = matrix_II[stop:, start:stop]
        below_IP.copy_(torch.linalg.solve_triangular(lower_PP.T, below_IP, upper=True, left=False))
        for left in range(stop, n_in, PANEL_WIDTH):
            right = min(left + PANEL_WIDTH, n_in)
            part_PP = matrix_II[left:right, start:stop]
            matrix_II[left:right, left:right].sub_((part_PP @ part_PP.T).tril_())
            matrix_II[right:, left:right].addmm_(matrix_II[right:, start:stop], part_PP.T, alpha=-1)
    return True


def _reversed_bands(lower_II: Tensor) -> list[Tensor]:
    """The lower triangle read backwards, in bands of rows [B, I - start], each from its first column on: half the memory."""
    n_in = len(lower_II)
    bands = []
    for start in range(0, n_in, BAND_WIDTH):
        stop = min(start + BAND_WIDTH, n_in)
        bands.append(lower_II[n_in - stop : n_in - start, : n_in - start].flip(0, 1).triu_())
    return bands


def _columns_of_inverse(bands: list[Tensor], start: int, stop: int) -> Tensor:
    """Columns `start` to `stop` of U = R⁻¹ down to row `stop`, below which they are zero [I, P]."""
    inverse_IP = torch.eye(stop, device=bands[0].device)[:, start:]
    for first in reversed(range(0, stop, BAND_WIDTH)):
        end = min(first + BAND_WIDTH, stop)
        band_BI = bands[first // BAND_WIDTH][: end - first, : stop - first]
        rest_BP = inverse_IP[first:end] - band_BI[:, end - first :] @ inverse_IP[end:]
        inverse_IP[first:end] = torch.linalg.solve_triangular(band_BI[:, : end - first], rest_BP, upper=True)
    return inverse_IP
