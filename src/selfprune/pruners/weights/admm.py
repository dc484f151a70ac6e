"""ADMM: fast and effective weight update for pruned LLMs (Boža, 2024, arXiv 2401.02938).

Limits: the penalty is fixed, so after the few published iterations the kept weights are near their optimum, not at it; ALPS
adapts it and leaves less error, for several times the work. Gram matrix, its factor and its inverse take 4·I² bytes each.

Shape suffixes: O out, I in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.pruners.selection import lowest_round_robin
from selfprune.pruners.weight_pruner import Scope
from selfprune.pruners.weights.scaled_layer import ScaledLayer, ScaledLayerPruner


@dataclass
class ADMM(ScaledLayerPruner):
    """Alternates between weights of least error and weights that obey the mask, and chooses the mask on the way.

    Over the whole matrix the mask has its full sparsity from the first iteration, as in the published implementation; under
    a pattern or within rows the sparsity grows to it.

    Attributes:
        n_iterations: alternations in all.
        n_mask_iterations: alternations in which the mask is still chosen anew; 0 takes that of the scaled magnitudes.
    """

    n_iterations: int = 20
    n_mask_iterations: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "n_iterations")
        if not 0 <= self.n_mask_iterations <= self.n_iterations:
            raise ConfigError(
                f"pruner.n_mask_iterations must lie between 0 and pruner.n_iterations, got {self.n_mask_iterations} of "
                f"{self.n_iterations}; lower the one or raise the other"
            )

    def solve(self, weight_OI: Tensor, gram_II: Tensor, n_pruned: int, damping: float) -> tuple[Tensor, Tensor]:
        """Z = mask(B + U), U ← U + B − Z, B = (W H + rho (Z − U)) (H + rho I)⁻¹, in turns; Z is the result."""
        layer = ScaledLayer.scale(weight_OI, gram_II)
        layer.hessian_II.diagonal().add_(damping * layer.hessian_II.diagonal().mean())
        target_OI = layer.target()
        layer.hessian_II.diagonal().add_(self.rho)
        inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(layer.hessian_II))

        moved_OI = layer.weight_OI  # B + U
        mask_OI = torch.empty(0)
        for iteration in range(self.n_iterations):
            if iteration < max(1, self.n_mask_iterations):
                mask_OI = self._choose(moved_OI, n_pruned, iteration)
            # U takes what the mask forbids and nothing else, so Z − U is B + U with the forbidden part turned round.
            dual_OI = moved_OI.masked_fill(mask_OI, 0)
            moved_OI = (target_OI + self.rho * (moved_OI - 2 * dual_OI)) @ inverse_II + dual_OI
        return layer.unscale(moved_OI.masked_fill(~mask_OI, 0)), mask_OI

    def _choose(self, values_OI: Tensor, n_pruned: int, iteration: int) -> Tensor:
        """The mask [O, I] of an iteration: the largest values stay."""
        is_gradual = bool(self.pattern) or self.scope is Scope.ROW
        if not is_gradual or iteration + 1 >= self.n_mask_iterations:
            return ~self.lowest(values_OI, n_pruned)
        # 1 − (1 − t/T)³ of the sparsity after t of T iterations
        n_now = int(n_pruned * (1 - (1 - (iteration + 1) / self.n_mask_iterations) ** 3))
        if not self.pattern:
            return ~self.lowest(values_OI, n_now)
        # The largest of each group stay in any case; the others compete over the whole matrix.
        is_safe_OI = ~self.lowest(values_OI, n_pruned)
        scores_OI = values_OI.abs().masked_fill_(is_safe_OI, torch.inf)
        return ~lowest_round_robin(scores_OI.reshape(1, -1), n_now).reshape(values_OI.shape)
