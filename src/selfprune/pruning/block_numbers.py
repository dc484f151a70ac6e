"""What the hidden states of the dense model say of every block: how much it changes them, and how alike they stay.

Influence is ShortGPT's (`proposers/closed_forms/block_influence`). Alikeness is linear CKA (Kornblith et al., 2019, arXiv
1905.00414, §3) between what enters a block and what leaves it: 1 where the one is the other but for a rotation and a scale.

Limits: few windows, and hidden states of many widths are led by their largest directions, which CKA weighs most.

Shape suffixes: N sequences, T tokens, D hidden width.
"""

import torch
from torch import Tensor

from selfprune.models.blocks.walk import walk_blocks
from selfprune.models.loading import LoadedModel
from selfprune.proposers.closed_forms.block_influence import BlockInfluence

N_WINDOWS = 8
"""Calibration windows that are looked at."""


def look_at_blocks(loaded: LoadedModel, windows_NT: Tensor, batch_size: int) -> dict[str, dict[int, float]]:
    """`influence` and `alikeness`, each block -> number.

    Args:
        loaded: the dense model.
        windows_NT: calibration windows, of which the first count.
        batch_size: windows per forward pass.
    """
    found: dict[str, dict[int, float]] = {"influence": {}, "alikeness": {}}
    for visit in walk_blocks(loaded, windows_NT[:N_WINDOWS], batch_size):
        visit.forward()
        found["influence"][visit.index] = BlockInfluence().of_block(visit.inputs, visit.hidden)
        found["alikeness"][visit.index] = linear_cka(torch.cat(visit.inputs), torch.cat(visit.hidden))
    return found


def linear_cka(one_NTD: Tensor, other_NTD: Tensor) -> float:
    """‖XᵀY‖² / (‖XᵀX‖ · ‖YᵀY‖) of centred states, Frobenius norms over all tokens; 0 where either is constant."""
    # the blocks of a model that is spread lie on several devices
    x_KD, y_KD = (states.to(one_NTD.device).flatten(0, -2).float() for states in (one_NTD, other_NTD))
    x_KD, y_KD = x_KD - x_KD.mean(dim=0), y_KD - y_KD.mean(dim=0)
    within = float((x_KD.T @ x_KD).norm()) * float((y_KD.T @ y_KD).norm())
    return float((x_KD.T @ y_KD).norm()) ** 2 / within if within else 0.0
