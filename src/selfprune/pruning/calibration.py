"""Gathers the statistics of a model block by block, and hands those of each block on before the next is reached.

Shape suffixes: N sequences, T tokens, O out, I in.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from selfprune.allocations.unit import Unit
from selfprune.levels.level_store import LevelStore
from selfprune.models.blocks.gradients import backward_blocks
from selfprune.models.blocks.walk import walk_blocks
from selfprune.models.loading import LoadedModel
from selfprune.models.units import n_row_groups, weight_view
from selfprune.pruners.base import Pruner
from selfprune.pruners.weights.wanda import Wanda
from selfprune.pruning.measurements import Measurements
from selfprune.statistics.base import Statistics
from selfprune.statistics.coverage import Coverage
from selfprune.statistics.gather import MakeStatistics, gather


def calibrate(
    loaded: LoadedModel,
    windows_NT: Tensor,
    pruner: Pruner,
    batch_size: int,
    measurements: Measurements,
    store: LevelStore,
    coverage: Coverage | None = None,
) -> None:
    """Fills the measurements and the level store in one walk over the blocks, with one block's statistics at a time.

    The blocks are walked once more for measurements that look at inputs which the pruner does not gather, and for those that look
    at hidden states.

    Args:
        loaded: the dense model.
        windows_NT: calibration windows.
        pruner: whose statistics the level store takes.
        batch_size: windows per forward pass.
        measurements: what the closed forms need.
        store: of the same model and pruner, still empty.
        coverage: counts the tokens that reach each unit.

    Raises:
        PruningError: when a unit's statistics are not finite; the message names the unit.
    """
    for units, statistics in calibrate_blocks(loaded, windows_NT, pruner, batch_size, coverage):
        # in this order, since a store may turn statistics into something else in place, to save memory
        measurements.take(units, statistics)
        store.take(units, statistics)
    if not measurements.are_complete:
        for units, squares in calibrate_blocks(loaded, windows_NT, Wanda(), batch_size):
            measurements.take(units, squares)
    if measurements.need_hidden_states:
        for visit in walk_blocks(loaded, windows_NT, batch_size):
            visit.forward()
            measurements.take_hidden(visit.index, visit.inputs, visit.hidden)


@torch.no_grad()
def calibrate_blocks(
    loaded: LoadedModel, windows_NT: Tensor, pruner: Pruner, batch_size: int, coverage: Coverage | None = None
) -> Iterator[tuple[list[Unit], dict[str, Statistics]]]:
    """The units of each block with their statistics, block after block, of the model as it stands.

    The statistics of a block can be forgotten before those of the next are gathered; a pruner that needs gradients has those of
    all blocks gathered first.

    Args:
        loaded: the model, dense or pruned.
        windows_NT: calibration windows.
        pruner: says what is gathered.
        batch_size: windows per forward pass; gradients are always taken window by window.
        coverage: counts the tokens that reach each unit.
    """
    coverage = coverage or Coverage(loaded)
    if pruner.needs_gradients:
        gradients = gather_gradients(loaded, windows_NT, pruner, coverage)
        for block in range(len(loaded.blocks)):
            units = [unit for unit in loaded.units if unit.block == block]
            yield units, {unit.name: gradients.pop(unit.name) for unit in units}
        return
    make = statistics_maker(loaded, pruner, len(windows_NT))
    for visit in walk_blocks(loaded, windows_NT, batch_size):
        with gather(loaded.model, visit.units, make, coverage.add) as statistics:
            visit.forward()
        yield visit.units, statistics


def statistics_maker(loaded: LoadedModel, pruner: Pruner, n_sequences: int) -> MakeStatistics:
    """Makes the pruner's empty statistics of a unit.

    Args:
        loaded: the model.
        pruner: says what is gathered.
        n_sequences: calibration windows that will come in all.
    """

    def make(unit: Unit) -> Statistics:
        return pruner.statistics(n_row_groups(loaded.model, unit), weight_view(loaded.model, unit).shape[1], n_sequences)

    return make


def gather_gradients(loaded: LoadedModel, windows_NT: Tensor, pruner: Pruner, coverage: Coverage) -> dict[str, Statistics]:
    """Unit name -> statistics of the gradients, of all units at once.

    Args:
        loaded: the model as it stands.
        windows_NT: calibration windows, each of which has a backward pass of its own.
        pruner: needs gradients.
        coverage: notes which units had none.
    """
    make = statistics_maker(loaded, pruner, len(windows_NT))
    statistics = {unit.name: make(unit) for unit in loaded.units}
    for window_NT in torch.split(windows_NT, 1):
        backward_blocks(loaded, window_NT, lambda unit, gradient_OI: statistics[unit.name].update(gradient_OI))
    for unit in loaded.units:
        coverage.note_gradients(unit, statistics[unit.name].unseen())
    return statistics
