"""Least squares: the weights that stay make up for those that go.

Shape suffixes: O out, I in, K columns that stay, R columns that go.
"""

import torch
from torch import Tensor

from selfprune.errors import PruningError

MAX_DAMPING = 1.0
"""Share of the mean diagonal beyond which a Gram matrix is given up."""
TOLERANCE = 1e-4
"""Conjugate gradients stop where a row's gradient is this small beside its start from zero."""


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


def fit_masked(
    weight_OI: Tensor, gram_II: Tensor, kept_OI: Tensor, start_OI: Tensor, percent_damping: float, n_steps: int
) -> Tensor:
    """As `fit_kept`, of rows that keep weights of their own each, by conjugate gradients on channels of unit norm.

    Args:
        weight_OI: the whole matrix.
        gram_II: Σ_tokens x xᵀ of its inputs.
        kept_OI: which weights stay.
        start_OI: zero where they do not.
        percent_damping: λ as a share of the mean of the diagonal.
        n_steps: at most so many.

    Raises:
        PruningError: when the inputs are not finite.
    """
    damped_II = damped(gram_II.to(weight_OI.device), percent_damping)
    norms_I = damped_II.diagonal().sqrt()
    hessian_II = (damped_II / norms_I).div_(norms_I[:, None])
    target_OI = (weight_OI.float() * norms_I) @ hessian_II
    return conjugate_gradients(hessian_II, target_OI, kept_OI, start_OI.float() * norms_I, n_steps) / norms_I


def conjugate_gradients(hessian_II: Tensor, target_OI: Tensor, mask_OI: Tensor, start_OI: Tensor, n_steps: int) -> Tensor:
    """Least squares on a fixed mask, all rows at once: B with (B H − W H) zero where the mask is True.

    Args:
        hessian_II: H, positive semidefinite.
        target_OI: W H.
        mask_OI: True where a weight is kept.
        start_OI: the first B, zero where the mask is False.
        n_steps: at most so many steps.

    Returns:
        B [O, I], zero where the mask is False.
    """
    solution_OI = start_OI
    residual_OI = (target_OI - start_OI @ hessian_II).masked_fill_(~mask_OI, 0)
    direction_OI = residual_OI
    squares_O = residual_OI.square().sum(dim=1)
    goal_O = TOLERANCE**2 * target_OI.masked_fill(~mask_OI, 0).square().sum(dim=1)
    for _ in range(n_steps):
        if (squares_O <= goal_O).all():
            break
        image_OI = (direction_OI @ hessian_II).masked_fill_(~mask_OI, 0)
        curvature_O = (direction_OI * image_OI).sum(dim=1)
        # A row without anything left to gain has no direction to go.
        step_O = torch.where(curvature_O > 0, squares_O / curvature_O, 0)
        solution_OI = solution_OI + step_O[:, None] * direction_OI
        residual_OI = residual_OI - step_O[:, None] * image_OI
        new_squares_O = residual_OI.square().sum(dim=1)
        direction_OI = residual_OI + torch.where(squares_O > 0, new_squares_O / squares_O, 0)[:, None] * direction_OI
        squares_O = new_squares_O
    return solution_OI
