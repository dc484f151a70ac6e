"""A loss on hidden states, as Minitron's intermediate losses (Muralidharan et al., 2024, arXiv 2407.14679, §3).

Of the hidden states h after each of B blocks,

    1/B · Σ_b ‖h_b − h_b(dense)‖² / ‖h_b(dense)‖²

Limits: every block of the dense model must be there, and the dense model is asked at every step.

Shape suffixes: N windows, T tokens, D hidden width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfprune.errors import ConfigError


def hidden_loss(hidden: Sequence[Tensor], dense: Any, tokens_NT: Tensor) -> Tensor:
    """How far hidden states lie from those of the dense model; 0 where they are the same, 1 where they are gone.

    Args:
        hidden: [N, T, D] before the first block, and after each.
        dense: the dense model.
        tokens_NT: of the same windows.

    Raises:
        ConfigError: when there are not as many blocks.
    """
    with torch.no_grad():
        of_dense = dense(input_ids=tokens_NT, use_cache=False, output_hidden_states=True).hidden_states
    if len(hidden) != len(of_dense):
        raise ConfigError(
            f"training.hidden_weight compares the hidden states of every block, but of {len(of_dense) - 1} blocks the pruned "
            f"model has {len(hidden) - 1}; give training.hidden_weight=0"
        )
    pairs = [(own_NTD.float(), dense_NTD.float()) for own_NTD, dense_NTD in zip(hidden, of_dense, strict=True)]
    each = [(own_NTD - dense_NTD).square().sum() / dense_NTD.square().sum() for own_NTD, dense_NTD in pairs[1:]]
    return torch.stack(each).mean()
