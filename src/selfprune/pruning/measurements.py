"""What closed forms need to know about the blocks, measured in the walk that calibrates the pruner.

Shape suffixes: N sequences, T tokens, O out, I in.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from selfprune.allocations.allocation import Unit
from selfprune.models.loading import LoadedModel
from selfprune.models.units import n_row_groups, weight_view
from selfprune.proposers.base import Measurement, ProposerConfig
from selfprune.pruners.base import Pruner
from selfprune.pruners.weights.wanda import Wanda, wanda_metric
from selfprune.pruning.calibration import calibrate_blocks
from selfprune.statistics.base import Statistics
from selfprune.statistics.coverage import Coverage

Measured = dict[Measurement, dict[int, float]]
"""Measurement -> block -> number."""


def needed_measurements(proposers: Iterable[ProposerConfig]) -> list[Measurement]:
    """What these proposers need measured, each once."""
    return list(dict.fromkeys(measurement for proposer in proposers for measurement in proposer.measurements()))


def measure_blocks(
    loaded: LoadedModel,
    windows_NT: Tensor,
    pruner: Pruner,
    batch_size: int,
    measurements: Iterable[Measurement],
    on_block: Callable[[list[Unit], dict[str, Statistics]], None],
    coverage: Coverage | None = None,
) -> Measured:
    """The measurements of the model as it stands, in one walk over its blocks with the pruner's statistics.

    One block's statistics are held at a time. The blocks are walked a second time only for measurements that look at inputs
    which the pruner does not gather.

    Args:
        loaded: the dense model.
        windows_NT: calibration windows.
        pruner: whose statistics are gathered.
        batch_size: windows per forward pass.
        measurements: what is measured.
        on_block: called with every block's units and their statistics by name, before these are forgotten.
        coverage: counts the tokens that reach each unit.
    """
    measured: Measured = {measurement: {} for measurement in measurements}
    for units, statistics in calibrate_blocks(loaded, windows_NT, pruner, batch_size, coverage):
        on_block(units, statistics)
        has_means = all(hasattr(gathered, "means") for gathered in statistics.values())
        _measure(loaded, units, statistics, {m: measured[m] for m in measured if has_means or not m.needs_inputs})
    left = {measurement: of_blocks for measurement, of_blocks in measured.items() if not of_blocks}
    if left:
        for units, statistics in calibrate_blocks(loaded, windows_NT, Wanda(), batch_size):
            _measure(loaded, units, statistics, left)
    return measured


def _measure(
    loaded: LoadedModel, units: list[Unit], statistics: Mapping[str, Any], measured: Mapping[Measurement, dict[int, float]]
) -> None:
    """Adds the numbers of one block to `measured`."""
    weights: list[Tensor] = []
    metrics: list[Tensor] = []
    for unit in units if measured else []:
        weight_OI, n_groups = weight_view(loaded.model, unit), n_row_groups(loaded.model, unit)
        weights += weight_OI.chunk(n_groups)
        if any(measurement.needs_inputs for measurement in measured):
            metrics += wanda_metric(weight_OI, statistics[unit.name]).chunk(n_groups)
    for measurement, of_blocks in measured.items():
        of_blocks[units[0].block] = measurement.of_block(weights, metrics if measurement.needs_inputs else [])
