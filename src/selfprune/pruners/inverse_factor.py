"""The Hessian of a layer and the Cholesky factor of its inverse, in the memory of one matrix.

SparseGPT needs the upper triangular U with H⁻¹ = UᵀU. The published way inverts H and factorises the inverse: three passes, of
which each needs another matrix. Here the inputs are gathered in reversed order, so that the lower Cholesky factor L of that
reversed Hessian gives U = L⁻¹, read backwards. Both steps work in place on the lower triangle, panel by panel; the upper one
keeps the sums, from which a factorisation that fails starts again with more damping.

Shape suffixes: I in, G groups of output rows with an input of their own, B columns of a block, P columns of a panel.
"""

import logging

import torch
from torch import Tensor

from selfprune.errors import PruningError
from selfprune.pruners.statistics import InputGram, mirror_in_place

logger = logging.getLogger(__name__)

PANEL_WIDTH = 512
"""Columns that are factorised together; what is held beside the matrix is a few panels."""
BAND_WIDTH = 128
"""Rows of the factor that are kept together."""
MAX_DAMPING = 1e3
"""Beyond this many times the mean diagonal, a Hessian is broken and not merely ill-conditioned."""


class InverseFactor(InputGram):
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

    def block(self, group: int, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of U from column `start` on [B, I - start].

        Raises:
            PruningError: when the inputs were not finite, or no damping makes the Hessian positive definite.
        """
        bands = self.factorise()[group]
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
        sums_GI = torch.zeros_like(self._diagonal())
        for sums_I, bands in zip(sums_GI, self.factorise(), strict=True):
            for band_BI in bands:
                sums_I[len(sums_I) - band_BI.shape[1] :] += band_BI.square().sum(dim=0)
        return sums_GI

    def _diagonal(self) -> Tensor:
        """Σ x_j² [G, I]."""
        if not self._diagonal_GI.numel():
            self._diagonal_GI = self._allocated(torch.device("cpu")).diagonal(dim1=1, dim2=2).flip(-1).clone()
        return self._diagonal_GI

    def factorise(self) -> list[list[Tensor]]:
        """Per group the rows of U in bands [B, I - start], each from its first column on: half the memory of the matrix.

        They are made once, in place of the sums.

        Raises:
            PruningError: when the inputs were not finite, or no damping makes the Hessian positive definite.
        """
        if not self._bands:
            diagonal_GI, grams_GII = self._diagonal(), self._release()
            bands = []
            for gram_II, diagonal_I in zip(grams_GII, diagonal_GI, strict=True):
                self._damp_and_invert_in_place(gram_II, diagonal_I)
                starts = range(0, len(gram_II), BAND_WIDTH)
                bands.append([gram_II[start : start + BAND_WIDTH, start:].clone() for start in starts])
            # only now, so that statistics that were refused are refused again
            self._bands = bands
        return self._bands

    def _damp_and_invert_in_place(self, gram_II: Tensor, diagonal_I: Tensor) -> None:
        """Turns the upper triangle of a reversed Σ x xᵀ into the lower triangular inverse of its Cholesky factor."""
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
                _invert_in_place(gram_II)
                _reverse_in_place(gram_II)
                if torch.isfinite(torch.stack(gram_II.aminmax())).all():
                    return
                raise PruningError("the scores of a unit are not finite: its Hessian overflows; check its calibration inputs")
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


def _invert_in_place(lower_II: Tensor) -> None:
    """Turns a lower triangular matrix into its inverse; what lies above the diagonal becomes zero."""
    lower_II.tril_()
    n_in = len(lower_II)
    for start in reversed(range(0, n_in, PANEL_WIDTH)):
        stop = min(start + PANEL_WIDTH, n_in)
        corner_PP = lower_II[start:stop, start:stop]
        corner_PP.copy_(torch.linalg.solve_triangular(corner_PP, torch.eye(stop - start).to(lower_II), upper=False))
        # the inverse below this corner is −L22⁻¹ L21 L11⁻¹, where L22⁻¹ stands already
        below_IP = lower_II[stop:, start:stop] @ corner_PP
        for top in reversed(range(stop, n_in, PANEL_WIDTH)):
            bottom = min(top + PANEL_WIDTH, n_in)
            lower_II[top:bottom, start:stop] = lower_II[top:bottom, stop:bottom] @ below_IP[: bottom - stop]
        lower_II[stop:, start:stop].neg_()


def _reverse_in_place(matrix_II: Tensor) -> None:
    """Puts the last row and column first, and so on."""
    n_in = len(matrix_II)
    for start in range(0, n_in // 2, PANEL_WIDTH // 4):
        stop = min(start + PANEL_WIDTH // 4, n_in // 2)
        upper_PI, lower_PI = matrix_II[start:stop], matrix_II[n_in - stop : n_in - start]
        kept_PI = upper_PI.flip(0, 1)
        upper_PI.copy_(lower_PI.flip(0, 1))
        lower_PI.copy_(kept_PI)
    if n_in % 2:
        matrix_II[n_in // 2] = matrix_II[n_in // 2].flip(0)
