"""Gathers the statistics of a model block by block, and hands those of each block on before the next is reached.

Shape suffixes: N sequences, T tokens, O out, I in.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from selfprune.allocations.unit import Unit
from selfprune.levels.level_store import LevelStore
from selfprune.models.blocks.gradients import backward_blocks
from selfprune.models.blocks.walk import BlockVisit, walk_blocks
from selfprune.models.loading import LoadedModel
from selfprune.models.units import by_item, n_row_groups, weight_view
from selfprune.pruners.base import Pruner
from selfprune.pruners.structures.flap import FLAP
from selfprune.pruners.weights.wanda import Wanda
from selfprune.pruning.measurements import Measurements
from selfprune.statistics.base import Statistics
from selfprune.statistics.coverage import Coverage
from selfprune.statistics.gather import gather


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

    The blocks are walked once more for measurements that look at inputs which the pruner does not gather, for those of items, and
    for those that look at hidden states.

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
    for measurement in measurements.of_items:
        for units, gathered in calibrate_blocks(loaded, windows_NT, FLAP(metric=measurement.metric), batch_size):
            measurements.take_items(measurement, units, gathered)
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
    gather = BlockStatistics(loaded, windows_NT, pruner, coverage or Coverage(loaded))
    if not pruner.needs_inputs:
        for block in range(len(loaded.blocks)):
            units = [unit for unit in loaded.units if unit.block == block]
            yield units, gather.of_gradients(units)
        return
    for visit in walk_blocks(loaded, windows_NT, batch_size):
        yield visit.units, gather(visit)


class BlockStatistics:
    """Gathers the statistics of one block after the other; those of gradients first, of all blocks of the model as it stands.

    Args:
        loaded: the model.
        windows_NT: calibration windows, each of which has a backward pass of its own.
        pruner: says what is gathered.
        coverage: counts the tokens that reach each unit, and notes which units had no gradient.
    """

    def __init__(self, loaded: LoadedModel, windows_NT: Tensor, pruner: Pruner, coverage: Coverage) -> None:
        self._loaded, self._n_sequences, self._pruner, self._coverage = loaded, len(windows_NT), pruner, coverage
        self._gradients: dict[str, Statistics] = {}
        if pruner.needs_gradients:
            self._gather_gradients(windows_NT)

    def __call__(self, visit: BlockVisit) -> dict[str, Statistics]:
        """Runs a block where its inputs are asked for: unit name -> statistics."""
        if not self._pruner.needs_inputs:
            return self.of_gradients(visit.units)
        with gather(self._loaded.model, visit.units, self._empty, self._coverage.add) as statistics:
            visit.forward()
        if not self._pruner.needs_gradients:
            return statistics
        return {name: self._pruner.joined(self._gradients.pop(name), of_inputs) for name, of_inputs in statistics.items()}

    def of_gradients(self, units: Sequence[Unit]) -> dict[str, Statistics]:
        """Unit name -> statistics of its gradients, which are handed over."""
        return {unit.name: self._gradients.pop(unit.name) for unit in units}

    def _gather_gradients(self, windows_NT: Tensor) -> None:
        self._gradients = {unit.name: self._empty(unit) for unit in self._loaded.units}

        def see(unit: Unit, gradient_OI: Tensor) -> None:
            weight = by_item(unit, weight_view(self._loaded.model, unit))
            self._pruner.see_gradient(self._gradients[unit.name], weight, gradient_OI)

        for window_NT in torch.split(windows_NT, 1):
            backward_blocks(self._loaded, window_NT, see)
        for unit in self._loaded.units:
            self._coverage.note_gradients(unit, self._gradients[unit.name].unseen())

    def _empty(self, unit: Unit) -> Statistics:
        model = self._loaded.model
        return self._pruner.statistics(n_row_groups(model, unit), weight_view(model, unit).shape[1], self._n_sequences)
