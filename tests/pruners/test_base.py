"""What a pruner decides is counted in items, whatever the weights of one."""

import torch

from selfprune.pruners.base import PrunedUnit


def test_what_goes_is_counted_in_items():
    channels_C = torch.tensor([True, False, True, False, False])
    assert PrunedUnit(channels_C, weight_OI=torch.zeros(4, 10)).n_removed == 3
    assert PrunedUnit(torch.ones(2, 3, dtype=torch.bool)).n_removed == 0
    assert PrunedUnit(torch.zeros(2, 3, dtype=torch.bool)).n_removed == 6
