"""Prunes a model for good, block by block, each on the outputs of the pruned blocks before it.

Shape suffixes: N sequences, T tokens, O out, I in.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from selfprune.allocations.unit import Allocation, Unit
from selfprune.errors import naming_unit
from selfprune.exports.block_writer import BlockWriter
from selfprune.models.blocks.walk import walk_blocks
from selfprune.models.fittings import compensate_in_place
from selfprune.models.loading import LoadedModel
from selfprune.models.units import by_item, spread, weight_view
from selfprune.pruners.base import PrunedUnit, Pruner
from selfprune.pruning.calibration import BlockStatistics
from selfprune.statistics.base import Statistics
from selfprune.statistics.coverage import Coverage


@torch.no_grad()
def prune_in_place(
    loaded: LoadedModel,
    windows_NT: Tensor,
    pruner: Pruner,
    allocation: Allocation,
    batch_size: int,
    writer: BlockWriter | None = None,
    on_block: Callable[[int], None] = lambda n_done: None,
    coverage: Coverage | None = None,
) -> dict[str, int]:
    """Prunes block by block, each on the outputs of the pruned blocks before it.

    A pruner that needs gradients takes those of the dense model.

    Args:
        loaded: the dense model; its weights are changed, where they are not on disk.
        windows_NT: calibration windows.
        pruner: decides what goes.
        allocation: unit name -> items to remove.
        batch_size: windows per forward pass.
        writer: where every block is saved as soon as it is pruned; a walk that was broken off goes on from there.
        on_block: called with the number of blocks that are done.
        coverage: counts the tokens that reach each unit.

    Returns:
        unit name -> items removed, equal to the allocation.

    Raises:
        PruningError: when a unit cannot be pruned; the message names it.
    """
    coverage = coverage or Coverage(loaded)
    gather = BlockStatistics(loaded, windows_NT, pruner, coverage)
    if writer:
        writer.check_begun(loaded, torch.split(windows_NT, batch_size))
    removed, n_tokens_of, start, hidden = writer.resume() if writer else ({}, {}, 0, None)
    coverage.n_tokens_of |= n_tokens_of
    for visit in walk_blocks(loaded, windows_NT, batch_size, start, hidden):
        statistics = gather(visit)
        for unit in visit.units:
            pruned = _prune_unit_in_place(loaded, unit, pruner, statistics.pop(unit.name), allocation[unit.name])
            removed[unit.name] = pruned.n_removed
        visit.forward()
        if writer:
            reached = {name: coverage.n_tokens_of[name] for name in removed}
            writer.save_block(loaded, visit.index, removed, reached, visit.hidden)
        on_block(visit.index + 1)
    return removed


def _prune_unit_in_place(loaded: LoadedModel, unit: Unit, pruner: Pruner, statistics: Statistics, n_pruned: int) -> PrunedUnit:
    weight_OI = weight_view(loaded.model, unit)
    with naming_unit(unit.name):
        pruned = pruner.prune(by_item(unit, weight_OI), statistics, n_pruned)
    if pruned.weight_OI is not None:
        weight_OI.copy_(pruned.weight_OI)
    weight_OI.masked_fill_(~spread(unit, pruned.kept), 0)
    if pruned.bias_O is not None:
        compensate_in_place(loaded, unit, pruned.bias_O)
    return pruned
