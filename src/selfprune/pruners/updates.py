"""What pruners that change the kept weights share: equal shares for groups of rows, and no kept weight lost in a narrow dtype.

Shape suffixes: O out, I in.
"""

import torch
from torch import Tensor

from selfprune.pruners.selection import CHUNK_ELEMENTS


def equal_shares(n_pruned: int, n_groups: int) -> list[int]:
    """What each group of rows loses: all as many, the first ones one more where it does not divide."""
    n_each, n_more = divmod(n_pruned, n_groups)
    return [n_each + (group < n_more) for group in range(n_groups)]


def restore_vanished_in_place(stored_OI: Tensor, mask_OI: Tensor, weight_OI: Tensor) -> None:
    """Gives kept weights that an update made too small for their dtype the least value that it has.

    Otherwise they would count as pruned.

    Args:
        stored_OI: the updated weights in the dtype of the dense ones.
        mask_OI: True where a weight is kept.
        weight_OI: the dense weights; those that were zero may stay so.
    """
    limits = torch.finfo(weight_OI.dtype)
    least = torch.tensor(limits.smallest_normal * limits.eps, dtype=weight_OI.dtype, device=weight_OI.device)
    n_rows = max(1, CHUNK_ELEMENTS // weight_OI.shape[1])
    for rows in (slice(start, start + n_rows) for start in range(0, len(weight_OI), n_rows)):
        some_OI = stored_OI[rows]
        vanished_OI = mask_OI[rows] & (some_OI == 0) & (weight_OI[rows] != 0)
        some_OI[vanished_OI] = least.copysign(some_OI[vanished_OI])  # zeros keep their sign
