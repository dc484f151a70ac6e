"""ALPS: ADMM with a growing penalty, then conjugate gradients on the mask it found (Meng et al., 2024, arXiv 2406.07831).

Limits: the eigenvectors of the Gram matrix take some 10·I³ operations in fp64 and 32·I² bytes, which for wide layers wants a
GPU. The iterations are chaotic: another order of summation flips a few percent of the mask, while the error hardly moves.

Shape suffixes: O out, I in.
"""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from selfprune.pruners.refit import conjugate_gradients
from selfprune.pruners.weights.scaled_layer import ScaledLayer, ScaledLayerPruner

MAX_RHO = 1e6
MIN_RHO = 1e-6
"""Below it the penalty is lost in fp32: the weights follow the dense ones, whatever the mask."""
SETTLED = 0.0003
"""Share of the kept weights; when fewer change their place, the mask is settled."""


@dataclass
class ALPS(ScaledLayerPruner):
    """Finds the mask by ADMM and the weights on it by conjugate gradients.

    Attributes:
        max_iterations: of ADMM, which starts with the penalty `rho` and adapts it.
        support_check_every: iterations after which the change of the mask decides about the penalty.
        switch_iteration: from here on, a mask that is settled ends the search for it.
        n_conjugate_gradient_steps: at most so many.
    """

    percent_damping: float = 0.01
    rho: float = 0.1
    max_iterations: int = 300
    support_check_every: int = 3
    switch_iteration: int = 30
    n_conjugate_gradient_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "max_iterations", "support_check_every")
        self._check_at_least(0, "switch_iteration", "n_conjugate_gradient_steps")

    def solve(self, weight_OI: Tensor, gram_II: Tensor, n_pruned: int, damping: float) -> tuple[Tensor, Tensor]:
        """ADMM for the mask (algorithm 1), then least squares on it (algorithm 2)."""
        damped_II = gram_II.clone()
        damped_II.diagonal().add_(damping * gram_II.diagonal().mean())
        layer = ScaledLayer.scale(weight_OI, damped_II)
        target_OI = layer.target()
        found_OI = self._iterate(layer, target_OI, n_pruned)
        mask_OI = ~self.lowest(found_OI, n_pruned)
        solved_OI = conjugate_gradients(
            layer.hessian_II, target_OI, mask_OI, found_OI.masked_fill_(~mask_OI, 0), self.n_conjugate_gradient_steps
        )
        return layer.unscale(solved_OI), mask_OI

    def _iterate(self, layer: ScaledLayer, target_OI: Tensor, n_pruned: int) -> Tensor:
        """The last B of B = (W H + rho (D − U)) (H + rho I)⁻¹, D = threshold(B + U), U ← U + B − D [O, I]."""
        eigenvalues_I, vectors_II = torch.linalg.eigh(layer.hessian_II.double())
        penalty = Penalty(self.rho)
        inverse_II = _inverse(eigenvalues_I, vectors_II, penalty.rho)
        checked_OI = ~self.lowest(layer.weight_OI, n_pruned)
        n_kept = checked_OI.numel() - n_pruned
        start_OI = layer.weight_OI.masked_fill(~checked_OI, 0)
        sparse_OI, dual_OI = start_OI, torch.zeros(())
        found_OI = start_OI
        for iteration in range(1, self.max_iterations + 1):
            found_OI = (target_OI + penalty.rho * (sparse_OI - dual_OI)) @ inverse_II
            moved_OI = found_OI + dual_OI
            kept_OI = ~self.lowest(moved_OI, n_pruned)
            # U takes what the threshold removes and nothing else.
            sparse_OI, dual_OI = moved_OI.masked_fill(~kept_OI, 0), moved_OI.masked_fill(kept_OI, 0)
            if iteration % self.support_check_every:
                continue
            n_changed = int((kept_OI != checked_OI).sum())
            checked_OI = kept_OI
            multipliers_OI = penalty.rho * dual_OI
            verdict = penalty.adapt(n_changed, n_kept)
            if verdict is Verdict.STOP or (iteration > self.switch_iteration and n_changed < SETTLED * n_kept):
                break
            # A new rho leaves the multipliers as they are, and they are rho U.
            dual_OI = multipliers_OI / penalty.rho
            if verdict is Verdict.RESTART:
                sparse_OI, dual_OI = start_OI, torch.zeros(())
            inverse_II = _inverse(eigenvalues_I, vectors_II, penalty.rho)
        return found_OI


class Verdict(Enum):
    """What becomes of the search for the mask after the penalty was adapted."""

    GO_ON = "GO_ON"
    RESTART = "RESTART"
    STOP = "STOP"


@dataclass
class Penalty:
    """The penalty: it grows faster the more the mask still changes; before that, it shrinks until the mask does change.

    Attributes:
        rho: its value.
        is_growing: whether it was small enough for the mask to change.
    """

    rho: float
    is_growing: bool = False

    def adapt(self, n_changed: int, n_kept: int) -> Verdict:
        """Changes the penalty by how much of the mask changed.

        Args:
            n_changed: places of the mask that changed since the last time.
            n_kept: weights that are kept.
        """
        if n_changed > 0.1 * n_kept:
            self.is_growing, factor = True, 1.3
        elif n_changed > 0.005 * n_kept:
            self.is_growing, factor = True, 1.2
        elif not self.is_growing:
            self.rho /= 5
            if self.rho < MIN_RHO:
                return Verdict.STOP
            return Verdict.RESTART if n_changed else Verdict.GO_ON
        elif n_changed:
            factor = 1.1
        else:
            return Verdict.STOP
        self.rho = min(self.rho * factor, MAX_RHO)
        return Verdict.GO_ON


def _inverse(eigenvalues_I: Tensor, vectors_II: Tensor, rho: float) -> Tensor:
    """(H + rho I)⁻¹ [I, I] in fp32; eigenvalues that rounding made negative count as zero."""
    return ((vectors_II / (eigenvalues_I.clamp(min=0) + rho)) @ vectors_II.T).float()
