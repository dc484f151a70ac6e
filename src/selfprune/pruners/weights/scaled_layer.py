"""What ADMM and ALPS share: a layer whose inputs have unit norm, one threshold for every pattern, and damping that helps itself.

Both look for the mask and the kept weights that minimise tr((B − W) H (B − W)ᵀ), the squared error of the layer's output, where
every input channel was divided by its norm and its weights multiplied by it; a threshold on |B| then treats all channels alike.

Shape suffixes: O out, I in, G groups of rows with inputs of their own.
"""

import logging
import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.errors import ConfigError, PruningError
from selfprune.pruners.base import PrunedUnit
from selfprune.pruners.selection import lowest_round_robin, pattern_width
from selfprune.pruners.updates import equal_shares, restore_vanished_in_place
from selfprune.pruners.weight_pruner import Scope, WeightPruner, check_level
from selfprune.pruners.weights.wanda import wanda_metric
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_gram import InputGram

logger = logging.getLogger(__name__)

N_TRIES = 6
"""A layer that is not solved with 10⁵ times the damping asked for is broken, not merely ill-conditioned."""
LEAST_DAMPING = 1e-4
"""What a damping of zero becomes when it fails."""
LEAST_NORM = 1e-8
"""Norms below this share of the largest are raised to it, so that dead channels can be divided by theirs."""


@dataclass
class ScaledLayer:
    """A layer in which every input channel has unit norm.

    Attributes:
        weight_OI: the weights times the norms of their channels, in fp32.
        hessian_II: Σ x xᵀ of the scaled inputs, in fp32; its diagonal is 1, or 0 where nothing came in.
        norms_I: what the weights were multiplied by; relative to the largest, so that the inputs' unit does not matter.
    """

    weight_OI: Tensor
    hessian_II: Tensor
    norms_I: Tensor

    @classmethod
    def scale(cls, weight_OI: Tensor, gram_II: Tensor) -> "ScaledLayer":
        """The scaled form of the weights [O, I] of a layer whose inputs sum to Σ x xᵀ [I, I]."""
        norms_I = gram_II.diagonal().sqrt()
        if not norms_I.any():
            # No token came by: all channels count alike.
            norms_I = torch.ones_like(norms_I)
        norms_I = norms_I.clamp(min=LEAST_NORM * float(norms_I.max()))
        # One division after the other, because the product of two norms may overflow.
        hessian_II = (gram_II / norms_I).div_(norms_I[:, None])
        relative_I = norms_I / norms_I.max()
        # In one layout, so that a transposed view is summed up, and hence pruned, exactly like its copy.
        return cls(weight_OI.float().contiguous() * relative_I, hessian_II, relative_I)

    def target(self) -> Tensor:
        """W H [O, I]: without a mask, B H equals it at the least error."""
        return self.weight_OI @ self.hessian_II

    def unscale(self, weight_OI: Tensor) -> Tensor:
        """Weights [O, I] in the layer's own units."""
        return weight_OI / self.norms_I


@dataclass
class ScaledLayerPruner(WeightPruner):
    """A pruner that solves for mask and weights together in the scaled layer.

    Attributes:
        scope: the weights that compete with each other: the whole matrix, as published, or an output row.
        percent_damping: share of the mean diagonal that is added to the diagonal; raised tenfold when too little.
        rho: penalty on weights that disobey the mask, relative to the squared norm of an input channel.
    """

    scope: Scope = Scope.MATRIX
    percent_damping: float = 0.1
    rho: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.percent_damping <= 1:
            raise ConfigError(f"pruner.percent_damping must lie in [0, 1], got {self.percent_damping}; the default serves")
        if not (self.rho > 0 and math.isfinite(self.rho)):
            raise ConfigError(f"pruner.rho must be positive and finite, got {self.rho}; the default serves")

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """Σ x xᵀ of the inputs."""
        return InputGram(n_row_groups, n_in, n_sequences)

    def scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """The scaled magnitude |W| · ‖x‖ [O, I], with which the search for a mask starts."""
        assert isinstance(statistics, InputGram)
        return wanda_metric(weight_OI, statistics.means())

    def prune_seen(self, weight_OI: Tensor, statistics: Statistics, n_pruned: int) -> PrunedUnit:
        """Removes `n_pruned` weights and updates the others; groups of rows lose equal shares, the first of them the rest.

        Raises:
            PruningError: when the count is out of range, no level of the pattern, or weights or inputs are not finite.
        """
        assert isinstance(statistics, InputGram)
        check_level(weight_OI, self.pattern, n_pruned)
        self._comparison_rows(self.scores(weight_OI, statistics))
        mask_OI = torch.ones(weight_OI.shape, dtype=torch.bool, device=weight_OI.device)
        if n_pruned == 0:
            return PrunedUnit(mask_OI)
        updated_OI = weight_OI.clone(memory_format=torch.contiguous_format)
        grams_GII = statistics.sums()
        n_rows = len(weight_OI) // len(grams_GII)
        for group, (gram_II, n_here) in enumerate(zip(grams_GII, equal_shares(n_pruned, len(grams_GII)), strict=True)):
            rows = slice(group * n_rows, (group + 1) * n_rows)
            if n_here == updated_OI[rows].numel():
                mask_OI[rows], updated_OI[rows] = False, 0
            elif n_here:
                updated_OI[rows], mask_OI[rows] = self._prune_group(weight_OI[rows], gram_II.to(weight_OI.device), n_here)
        return PrunedUnit(mask_OI, updated_OI)

    @abstractmethod
    def solve(self, weight_OI: Tensor, gram_II: Tensor, n_pruned: int, damping: float) -> tuple[Tensor, Tensor]:
        """The weights [O, I] in fp32, zero where pruned, and the mask [O, I], which is False `n_pruned` times.

        Args:
            weight_OI: weights of one group of rows.
            gram_II: Σ x xᵀ of its inputs; to be left as it is.
            n_pruned: more than 0, less than all.
            damping: share of the mean diagonal that is added to the diagonal.

        Raises:
            torch.linalg.LinAlgError: when the damping is too little.
        """

    def lowest(self, values_OI: Tensor, n_pruned: int) -> Tensor:
        """True [O, I] for the `n_pruned` smallest by magnitude among those that compete, ties by index."""
        n_out, n_in = values_OI.shape
        width = pattern_width(self.pattern, n_in) if self.pattern else self._row_width(n_out, n_in)
        return lowest_round_robin(values_OI.abs().reshape(-1, width), n_pruned).reshape(n_out, n_in)

    def _check_at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ConfigError(f"pruner.{name} must be at least {least}, got {getattr(self, name)}; the default serves")

    def _row_width(self, n_out: int, n_in: int) -> int:
        return n_in if self.scope is Scope.ROW else n_out * n_in

    def _prune_group(self, weight_OI: Tensor, gram_II: Tensor, n_pruned: int) -> tuple[Tensor, Tensor]:
        damping = self.percent_damping
        for attempt in range(N_TRIES):
            if attempt:
                damping = max(10 * damping, LEAST_DAMPING)
                logger.warning("a layer has no finite solution; its damping is raised to %g of the mean diagonal", damping)
            try:
                solved_OI, mask_OI = self.solve(weight_OI, gram_II, n_pruned, damping)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                continue
            # Looked at in the weights' dtype, because fp16 overflows where fp32 does not.
            updated_OI = solved_OI.to(weight_OI.dtype)
            if torch.isfinite(updated_OI).all():
                restore_vanished_in_place(updated_OI, mask_OI, weight_OI)
                return updated_OI, mask_OI
        raise PruningError(
            f"the updated weights of a unit are not finite even with a damping of {damping:g} times the mean diagonal; load the "
            "model in a wider dtype (model.dtype=FLOAT32) or check its calibration inputs"
        )
