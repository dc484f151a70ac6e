"""SparseGPT: column by column, the kept weights make up for the pruned ones (Frantar and Alistarh, 2023, arXiv 2301.00774).

Limits: the Hessian of a layer takes 4·I² bytes, and its factor as much again while it is made. Each block of columns loses the
same share, so that a matrix whose columns differ in worth is served less well than by ALPS.

Shape suffixes: O out, I in, B columns of a block, S columns of a strip.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.errors import ConfigError, PruningError
from selfprune.pruners.base import PrunedUnit
from selfprune.pruners.selection import below_zero, kth_smallest, lowest_of_group, lowest_round_robin, parse_pattern
from selfprune.pruners.updates import equal_shares, restore_vanished_in_place
from selfprune.pruners.weight_pruner import WeightPruner, check_level
from selfprune.statistics.base import Statistics
from selfprune.statistics.hessian_factor import HessianFactor

STRIP_WIDTH = 32
"""Columns that are made up to date one by one; what came before them in the block reaches all of a strip in one product."""


@dataclass
class SparseGPT(WeightPruner):
    """Optimal Brain Surgeon with one fixed order of columns.

    Attributes:
        block_width: columns whose mask is chosen together.
        percent_damping: share of the Hessian's mean diagonal that is added to its diagonal; raised tenfold when too little.
        reference_threshold: without a pattern, remove everything up to a block's threshold, one weight a block more than asked
            for, as the published implementation does; only for comparisons with it.
    """

    block_width: int = 128
    percent_damping: float = 0.01
    reference_threshold: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_width < 1:
            raise ConfigError(f"pruner.block_width must be at least 1, got {self.block_width}; the published width is 128")
        if not 0 <= self.percent_damping <= 1:
            raise ConfigError(
                f"pruner.percent_damping must lie in [0, 1], got {self.percent_damping}; the published value is 0.01"
            )

    @property
    def builds_levels(self) -> bool:
        """Its updates decide what a level is worth."""
        return True

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """The Hessian."""
        return HessianFactor(n_row_groups, n_in, n_sequences, self.percent_damping)

    def prepare(self, statistics: Statistics) -> None:
        """The factor of the Hessian takes its place."""
        assert isinstance(statistics, HessianFactor)
        statistics.factorise()

    def scores(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        """The error w² / [H⁻¹]_jj that removing one weight alone leaves behind [O, I] (eq. 2)."""
        assert isinstance(statistics, HessianFactor)
        inverse_GI = statistics.inverse_diagonal().masked_fill(statistics.dead(), torch.inf).to(weight_OI.device)
        n_groups, n_in = inverse_GI.shape
        return (weight_OI.float().square().reshape(n_groups, -1, n_in) / inverse_GI[:, None, :]).reshape(weight_OI.shape)

    def prune_seen(self, weight_OI: Tensor, statistics: Statistics, n_pruned: int) -> PrunedUnit:
        """Removes `n_pruned` weights and updates the others.

        The blocks of columns lose equal shares, rounded so that the total is exact; so do experts. Weights of dead inputs go
        first, the smallest of them before others, and are not set to zero otherwise, which the published implementation does.

        Raises:
            PruningError: when the count is out of range, no level of the pattern, or weights or inputs are not finite.
        """
        assert isinstance(statistics, HessianFactor)
        check_level(weight_OI, self.pattern, n_pruned)
        # before anything else is allocated, because it needs room to work
        self.prepare(statistics)
        if not torch.isfinite(torch.stack(weight_OI.aminmax())).all():
            raise PruningError("the scores of a unit are not finite: its weights hold NaN or infinity; check the checkpoint")
        mask_OI = torch.ones(weight_OI.shape, dtype=torch.bool, device=weight_OI.device)
        if n_pruned == 0 and (self.pattern or not self.reference_threshold):
            return PrunedUnit(mask_OI)
        updated_OI = torch.zeros(weight_OI.shape, device=weight_OI.device)
        shares = equal_shares(n_pruned, statistics.means().shape[0])
        parts = zip(*(matrix_OI.chunk(len(shares)) for matrix_OI in (weight_OI, updated_OI, mask_OI)), shares, strict=True)
        for group, (part_OI, updated_part_OI, mask_part_OI, n_here) in enumerate(parts):
            self._prune_into(updated_part_OI, mask_part_OI, part_OI, statistics, group, n_here)
        return PrunedUnit(mask_OI, _stored(updated_OI, mask_OI, weight_OI))

    def _prune_into(
        self, updated_OI: Tensor, mask_OI: Tensor, weight_OI: Tensor, factor: HessianFactor, group: int, n_pruned: int
    ) -> None:
        """Puts the pruned weights of a group and their mask in place.

        With what the columns before a block have lost, δ = dense − pruned, the block's weights become w + (δ R) U, where R is
        what the factor holds above the block's corner, and U the inverse of that corner (eq. 3 for all these columns at once).
        `updated_OI` is zero to begin with, and gathers δ R to the right of the block.
        """
        n_out, n_in = weight_OI.shape
        dead_I = factor.dead()[group].to(weight_OI.device)
        has_dead = bool(dead_I.any())
        width = parse_pattern(self.pattern)[1] if self.pattern else 1
        block_width = max(width, self.block_width // width * width)
        # columns become rows, so that what a step reads and writes lies together; one buffer serves all blocks
        buffer_BO = torch.empty(min(block_width, n_in), n_out, device=weight_OI.device)
        errors_of_all_BO = torch.empty_like(buffer_BO)
        for start in range(0, n_in, block_width):
            stop = min(start + block_width, n_in)
            factor_BI = factor.block(group, start, stop).to(weight_OI.device)
            identity_BB = torch.eye(stop - start, device=weight_OI.device)
            inverse_BB = torch.linalg.solve_triangular(factor_BI[:, : stop - start], identity_BB, upper=True)
            block_BO, errors_BO = buffer_BO[: stop - start], errors_of_all_BO[: stop - start]
            block_BO.copy_(weight_OI[:, start:stop].T)
            block_BO.addmm_(inverse_BB.T, updated_OI[:, start:stop].T)
            dead_B = dead_I[start:stop] if has_dead else None
            if self.pattern:
                goes_BO = torch.zeros_like(block_BO, dtype=torch.bool)
            else:
                n_block = n_pruned * stop // n_in - n_pruned * start // n_in
                goes_BO = self._choose(block_BO, inverse_BB, dead_B, n_block, n_pruned / (n_out * n_in))
            self._sweep_in_place(block_BO, goes_BO, errors_BO, inverse_BB, dead_B)
            updated_OI[:, start:stop] = block_BO.T
            mask_OI[:, start:stop] = goes_BO.logical_not_().T
            lost_OB = weight_OI[:, start:stop].float() - updated_OI[:, start:stop]
            updated_OI[:, stop:].addmm_(lost_OB, factor_BI[:, stop - start :])

    def _choose(self, block_BO: Tensor, inverse_BB: Tensor, dead_B: Tensor | None, n_pruned: int, sparsity: float) -> Tensor:
        """True [B, O] where a weight of the block goes: those with the lowest w² / U_jj² (eq. 4)."""
        scores_BO = _saliencies(block_BO, inverse_BB.diagonal(), dead_B)
        if self.reference_threshold:
            scores_BO.clamp_(min=0)
            n_up_to = min(int(scores_BO.numel() * sparsity) + 1, scores_BO.numel())
            return scores_BO <= kth_smallest(scores_BO.reshape(1, -1), n_up_to)
        return lowest_round_robin(scores_BO.reshape(1, -1), n_pruned).view(scores_BO.shape)

    def _sweep_in_place(
        self, block_BO: Tensor, goes_BO: Tensor, errors_BO: Tensor, inverse_BB: Tensor, dead_B: Tensor | None
    ) -> None:
        """Zeroes what goes, after each column has made up for what went to its left within the block (eq. 3).

        Under a pattern, what goes is chosen here, at the first column of each group. The errors [B, O] become w / U_jj of what
        went, zero elsewhere.
        """
        diagonal_B = inverse_BB.diagonal()
        torch.div(goes_BO, diagonal_B[:, None], out=errors_BO)
        n_kept, width = parse_pattern(self.pattern) if self.pattern else (0, 1)
        strip = max(width, STRIP_WIDTH // width * width)
        for start in range(0, len(block_BO), strip):
            stop = min(start + strip, len(block_BO))
            block_BO[start:stop].addmm_(inverse_BB[:start, start:stop].T, errors_BO[:start], alpha=-1)
            since = start
            for j in range(start, stop):
                if self.pattern and j % width == 0:
                    group = slice(j, j + width)
                    block_BO[group].addmm_(inverse_BB[start:j, group].T, errors_BO[start:j], alpha=-1)
                    scores_BO = _saliencies(block_BO[group], diagonal_B[group], None if dead_B is None else dead_B[group])
                    goes_BO[group] = lowest_of_group(scores_BO, width - n_kept)
                    torch.div(goes_BO[group], diagonal_B[group, None], out=errors_BO[group])
                    since = j
                block_BO[j].addmv_(errors_BO[since:j].T, inverse_BB[since:j, j], alpha=-1)
                errors_BO[j].mul_(block_BO[j])
        block_BO.masked_fill_(goes_BO, 0)


def _stored(updated_OI: Tensor, mask_OI: Tensor, weight_OI: Tensor) -> Tensor:
    """The updated weights in the dtype of the dense ones; there, no kept weight overflows, or vanishes that did not before.

    Raises:
        PruningError: when they are no numbers.
    """
    if weight_OI.dtype is updated_OI.dtype and torch.isfinite(torch.stack(updated_OI.aminmax())).all():
        return updated_OI
    limits = torch.finfo(weight_OI.dtype)
    largest = min(limits.max, torch.finfo(updated_OI.dtype).max)
    stored_OI = updated_OI.clamp_(-largest, largest).to(weight_OI.dtype)
    if torch.isnan(stored_OI.max()):
        raise PruningError("the updated weights of a unit are not finite; check the checkpoint and its calibration inputs")
    restore_vanished_in_place(stored_OI, mask_OI, weight_OI)
    return stored_OI


def _saliencies(weight_BO: Tensor, diagonal_B: Tensor, dead_B: Tensor | None) -> Tensor:
    """w² / U_jj² [B, O] (eq. 4); below zero for dead inputs, if there are any, the smaller the weight the lower."""
    saliencies_BO = (weight_BO / diagonal_B[:, None]).square_()
    return saliencies_BO if dead_B is None else torch.where(dead_B[:, None], below_zero(weight_BO), saliencies_BO)
