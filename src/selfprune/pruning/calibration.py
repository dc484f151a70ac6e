"""Gathers statistics block by block, and prunes block by block on the way.

Shape suffixes: N sequences, T tokens, O out, I in.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from selfprune.allocations.allocation import Allocation, Unit
from selfprune.errors import naming
from selfprune.exports.block_writer import Shards
from selfprune.models.block_gradients import backward_blocks
from selfprune.models.block_walk import BlockVisit, walk_blocks
from selfprune.models.loading import LoadedModel
from selfprune.models.units import n_row_groups, weight_view
from selfprune.pruners.base import Pruner
from selfprune.statistics.base import NoStatistics, Statistics
from selfprune.statistics.coverage import Coverage
from selfprune.statistics.gather import MakeStatistics, gather


@torch.no_grad()
def calibrate_blocks(
    loaded: LoadedModel, windows_NT: Tensor, pruner: Pruner, batch_size: int, coverage: Coverage | None = None
) -> Iterator[tuple[list[Unit], dict[str, Statistics]]]:
    """The units of each block with their statistics, block after block, of the model as it stands.

    The statistics of a block can be forgotten before those of the next are gathered, unless the pruner needs gradients.

    Args:
        loaded: the model, dense or pruned.
        windows_NT: calibration windows.
        pruner: says what is gathered.
        batch_size: windows per forward pass; gradients are always taken window by window.
        coverage: counts the tokens that reach each unit.
    """
    coverage = coverage or Coverage(loaded)
    make = _maker(loaded, pruner, len(windows_NT))
    if pruner.needs_gradients:
        gradients = _gather_gradients(loaded, windows_NT, make, coverage)
        for block in range(len(loaded.blocks)):
            units = [unit for unit in loaded.units if unit.block == block]
            yield units, {unit.name: gradients[unit.name] for unit in units}
        return
    for visit in walk_blocks(loaded, windows_NT, batch_size):
        with gather(loaded.model, visit.units, make, coverage.add) as statistics:
            visit.forward()
        yield visit.units, statistics


def calibrate(loaded: LoadedModel, windows_NT: Tensor, pruner: Pruner, batch_size: int) -> dict[str, Statistics]:
    """Unit name -> statistics, of all blocks at once: for small models, or small statistics such as Wanda's."""
    of_blocks = calibrate_blocks(loaded, windows_NT, pruner, batch_size)
    return {name: gathered for _, statistics in of_blocks for name, gathered in statistics.items()}


@torch.no_grad()
def prune_in_place(
    loaded: LoadedModel,
    windows_NT: Tensor,
    pruner: Pruner,
    allocation: Allocation,
    batch_size: int,
    shards: Shards | None = None,
    on_block: Callable[[int], None] = lambda n_done: None,
    true_sequential: bool = False,
    coverage: Coverage | None = None,
) -> dict[str, int]:
    """Prunes block by block, each on the outputs of the pruned blocks before it.

    A pruner that needs gradients takes those of the dense model.

    Args:
        loaded: the dense model; its weights are changed, where they are not on disk.
        windows_NT: calibration windows.
        pruner: decides which weights go.
        allocation: unit name -> items to remove.
        batch_size: windows per forward pass.
        shards: where every block is saved as soon as it is pruned; a walk that was broken off goes on from there.
        on_block: called with the number of blocks that are done.
        true_sequential: within a block, too, prune units on the outputs of those before them, for one more pass through the
            block per group of units that share an input, and one to find these groups.
        coverage: counts the tokens that reach each unit.

    Returns:
        unit name -> items removed, equal to the allocation.

    Raises:
        PruningError: when a unit cannot be pruned; the message names it.
    """
    coverage = coverage or Coverage(loaded)
    make = _maker(loaded, pruner, len(windows_NT))
    gradients = _gather_gradients(loaded, windows_NT, make, coverage) if pruner.needs_gradients else None
    if shards:
        shards.check_begun(loaded, torch.split(windows_NT, batch_size))
    removed, n_tokens_of, start, hidden = shards.resume() if shards else ({}, {}, 0, None)
    coverage.n_tokens_of |= n_tokens_of
    for visit in walk_blocks(loaded, windows_NT, batch_size, start, hidden):
        for units in _groups_by_input(loaded, visit) if true_sequential else [visit.units]:
            if gradients is None:
                with gather(loaded.model, units, make, coverage.add) as statistics:
                    visit.forward()
            else:
                statistics = {unit.name: gradients.pop(unit.name) for unit in units}
            for unit in units:
                removed[unit.name] = _prune_unit_in_place(loaded, unit, pruner, statistics.pop(unit.name), allocation[unit.name])
        visit.forward()
        if shards:
            reached = {name: coverage.n_tokens_of[name] for name in removed}
            shards.save_block(loaded, visit.index, removed, reached, visit.hidden)
        on_block(visit.index + 1)
    return removed


def _groups_by_input(loaded: LoadedModel, visit: BlockVisit) -> list[list[Unit]]:
    """The units of a block, those that are given the same input together, in the order of the model."""
    with gather(loaded.model, visit.units, lambda unit: NoStatistics()) as shared:
        visit.forward()
    groups: dict[int, list[Unit]] = {}
    for unit in visit.units:
        groups.setdefault(id(shared[unit.name]), []).append(unit)
    return list(groups.values())


def _prune_unit_in_place(loaded: LoadedModel, unit: Unit, pruner: Pruner, statistics: Statistics, n_pruned: int) -> int:
    weight_OI = weight_view(loaded.model, unit)
    with naming(unit.name):
        pruned = pruner.prune(weight_OI, statistics, n_pruned)
    if pruned.weight_OI is not None:
        weight_OI.copy_(pruned.weight_OI)
    weight_OI.masked_fill_(~pruned.kept, 0)
    return pruned.n_removed


def _maker(loaded: LoadedModel, pruner: Pruner, n_sequences: int) -> MakeStatistics:
    def make(unit: Unit) -> Statistics:
        return pruner.statistics(n_row_groups(loaded.model, unit), weight_view(loaded.model, unit).shape[1], n_sequences)

    return make


def _gather_gradients(loaded: LoadedModel, windows_NT: Tensor, make: MakeStatistics, coverage: Coverage) -> dict[str, Statistics]:
    statistics = {unit.name: make(unit) for unit in loaded.units}
    for window_NT in torch.split(windows_NT, 1):
        backward_blocks(loaded, window_NT, lambda unit, gradient_OI: statistics[unit.name].update(gradient_OI))
    for unit in loaded.units:
        coverage.note_gradients(unit, statistics[unit.name].unseen())
    return statistics
