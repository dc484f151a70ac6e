"""Least squares: the columns of a reader that stay make up for those that go.

Shape suffixes: O out, I in, K columns that stay, R columns that go.
"""

import torch
from torch import Tensor

from selfprune.errors import PruningError

MAX_DAMPING = 1.0
"""Share of the mean diagonal beyond which a Gram matrix is given up."""


def damped(gram_II: Tensor, share: float) -> Tensor:
    """G + λ·I with λ a share of the mean of the diagonal; 1 where a column saw nothing, so that it stays as it is.

    Raises:
        PruningError: when it is not finite.
    """
    if not torch.isfinite(gram_II).all():
        raise PruningError(
            "the inputs of a unit are not finite; load the model in a wider dtype (model.dtype=FLOAT32) or check the checkpoint"
        )
    damped_II = gram_II.clone()
    diagonal_I = damped_II.diagonal()
    diagonal_I += share * diagonal_I.mean()
    diagonal_I[diagonal_I == 0] = 1
    return damped_II


def fit_kept(weight_OI: Tensor, gram_II: Tensor, kept_I: Tensor, percent_damping: float) -> Tensor:
    """The matrix [O, I] in fp32, zero in the columns that go, whose output is nearest to that of the whole one.

    W'_K = W_K + W_R G_RK (G_KK + λ I)⁻¹ minimises Σ_tokens ‖(W − W') x‖² + λ ‖W'_K − W_K‖².

    Args:
        weight_OI: the whole matrix.
        gram_II: Σ_tokens x xᵀ of its inputs.
        kept_I: which columns stay.
        percent_damping: λ as a share of the mean of the diagonal; raised tenfold when too little.

    Raises:
        PruningError: when the inputs are not finite, or no damping helps.
    """
    weight_OI, gram_II = weight_OI.float(), gram_II.to(weight_OI.device)
    fitted_OI = weight_OI * kept_I
    if kept_I.all() or not kept_I.any():
        return fitted_OI
    k, r = kept_I.nonzero().flatten(), (~kept_I).nonzero().flatten()
    share = percent_damping
    while share <= MAX_DAMPING:
        factor_KK, failed = torch.linalg.cholesky_ex(damped(gram_II, share)[k][:, k])
        if not failed:
            moved_KO = torch.cholesky_solve(gram_II[k][:, r] @ weight_OI[:, r].T, factor_KK)
            fitted_OI[:, k] += moved_KO.T
            return fitted_OI
        share = max(share * 10, 1e-6)
    raise PruningError(
        "the inputs of a unit depend on each other so much that its kept columns cannot be fitted; use more windows"
    )
