"""What closed forms need to know about the blocks of the dense model.

Shape suffixes: O out, I in, N sequences, T tokens, D hidden width.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from selfprune.allocations.unit import Unit
from selfprune.models.loading import LoadedModel
from selfprune.models.units import by_item, n_row_groups, weight_view
from selfprune.proposers.base import HiddenMeasurement, ItemMeasurement, Measurement, ProposerConfig, WeightMeasurement
from selfprune.pruners.structures.flap import FLAP
from selfprune.pruners.weights.wanda import wanda_metric
from selfprune.statistics.base import Statistics


def needed_measurements(proposers: Iterable[ProposerConfig]) -> list[Measurement]:
    """What these proposers need measured, each once."""
    return list(dict.fromkeys(measurement for proposer in proposers for measurement in proposer.measurements()))


class Measurements:
    """Numbers of the blocks, measured as their statistics come.

    Args:
        loaded: the dense model.
        needed: what is measured.

    Example:
        >>> measurements = Measurements(loaded, needed_measurements([OWL()]))
        >>> for units, statistics in calibrate_blocks(loaded, windows_NT, pruner, batch_size):
        ...     measurements.take(units, statistics)
        >>> measurements.of_blocks

    Attributes:
        of_blocks: measurement -> block -> number.
        of_items: measurement -> unit name -> the numbers of its items.
    """

    def __init__(self, loaded: LoadedModel, needed: Iterable[Measurement]) -> None:
        needed = list(needed)
        self.of_items: dict[ItemMeasurement, dict[str, list[float]]] = {m: {} for m in needed if isinstance(m, ItemMeasurement)}
        self.of_blocks: dict[Measurement, dict[int, float]] = {m: {} for m in needed if not isinstance(m, ItemMeasurement)}
        self._loaded = loaded

    @property
    def are_complete(self) -> bool:
        """Whether all that statistics tell was taken, after all blocks came: they may have lacked the means of the inputs."""
        return all(of_blocks for measurement, of_blocks in self.of_blocks.items() if isinstance(measurement, WeightMeasurement))

    @property
    def need_hidden_states(self) -> bool:
        """Whether some look at the hidden states around the blocks."""
        return any(isinstance(measurement, HiddenMeasurement) for measurement in self.of_blocks)

    def of_weights(self) -> dict[str, dict[int, float]]:
        """What was measured of the blocks' weights, by the name of the measurement in words, such as `outlier_ratio`."""
        taken = {m: of_blocks for m, of_blocks in self.of_blocks.items() if isinstance(m, WeightMeasurement)}
        return {re.sub(r"(?<!^)(?=[A-Z])", "_", type(m).__name__).lower(): of_blocks for m, of_blocks in taken.items()}

    def take(self, units: Sequence[Unit], statistics: Mapping[str, Statistics]) -> None:
        """Measures what was not measured of a block yet, as far as its statistics tell.

        Args:
            units: of one block, all of them.
            statistics: unit name -> complete statistics.
        """
        block = units[0].block
        wanted = [measurement for measurement, of_blocks in self.of_blocks.items() if block not in of_blocks]
        left = [measurement for measurement in wanted if isinstance(measurement, WeightMeasurement)]
        weights = [matrix_OI for unit in units for matrix_OI in self._matrices(unit)] if left else []
        metrics = self._metrics(units, statistics) if any(measurement.needs_inputs for measurement in left) else []
        for measurement in left:
            if not measurement.needs_inputs:
                self.of_blocks[measurement][block] = measurement.of_block(weights, [])
            elif metrics is not None:
                self.of_blocks[measurement][block] = measurement.of_block(weights, metrics)

    def take_hidden(self, block: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Measures what looks at the hidden states around a block.

        Args:
            block: its index.
            inputs: per batch the hidden states [N, T, D] that enter it.
            outputs: those that leave it.
        """
        for measurement, of_blocks in self.of_blocks.items():
            if isinstance(measurement, HiddenMeasurement):
                of_blocks[block] = measurement.of_block(inputs, outputs)

    def take_items(self, measurement: ItemMeasurement, units: Sequence[Unit], statistics: Mapping[str, Statistics]) -> None:
        """Measures the items of units.

        Args:
            measurement: one of `of_items`.
            units: of one block.
            statistics: unit name -> complete statistics of FLAP by the metric of the measurement.
        """
        for unit in units:
            weight_OCW = by_item(unit, weight_view(self._loaded.model, unit))
            columns_CW = FLAP(metric=measurement.metric).of_columns(weight_OCW, statistics[unit.name])
            self.of_items[measurement][unit.name] = measurement.of_unit(columns_CW)

    def _metrics(self, units: Sequence[Unit], statistics: Mapping[str, Statistics]) -> list[Tensor] | None:
        """The Wanda metrics of a block, one matrix [O, I] per Linear and expert; None where the inputs are not known."""
        metrics: list[Tensor] = []
        for unit in units:
            means_GI = statistics[unit.name].means()
            if means_GI is None:
                return None
            metrics += wanda_metric(weight_view(self._loaded.model, unit), means_GI).chunk(len(means_GI))
        return metrics

    def _matrices(self, unit: Unit) -> tuple[Tensor, ...]:
        """The matrix [O, I] of a Linear, or those of fused experts."""
        return weight_view(self._loaded.model, unit).chunk(n_row_groups(self._loaded.model, unit))
