"""FLAP's own allocation: one threshold over all heads and channels (An et al., 2023, arXiv 2312.11983, §3.2).

The metrics of every attention and FFN are standardised by their own mean and deviation, and then compared with each other.

Limits: what stands far out within its layer stays, however little the layer matters. Where the last item is too large for what is
left to save, the published code stops at the nearest count; here the budget is met.

Shape suffixes: C items, W columns per item.
"""

from dataclasses import dataclass

from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.proposers.base import ClosedForm, ItemMeasurement, Measurement, SearchSpace
from selfprune.statistics.input_fluctuation import Metric


@dataclass(frozen=True)
class StandardisedMetric(ItemMeasurement):
    """FLAP's metric of every column of a reader, standardised over all of them, and averaged over the columns of a head."""

    def of_unit(self, columns_CW: Tensor) -> list[float]:
        """(metric − mean) / deviation (eq. 6); zeros where all are alike."""
        n_columns = columns_CW.numel()
        deviation = float(columns_CW.std()) if n_columns > 1 else 0.0
        standardised_CW = (columns_CW - columns_CW.mean()) / (deviation or 1.0)
        of_items: list[float] = standardised_CW.mean(dim=1).tolist()
        return of_items


@dataclass
class FLAPGlobal(ClosedForm):
    """The items of lowest standardised metric go, wherever they are.

    Attributes:
        metric: which of the paper's.
    """

    metric: Metric = Metric.WIFV

    @property
    def name(self) -> str:
        """As its file."""
        return "flap_global"

    def measurements(self) -> list[Measurement]:
        """The standardised metrics."""
        return [StandardisedMetric(self.metric)]

    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """The share of each unit that lies below the threshold at which the target is met.

        Raises:
            ConfigError: when the metrics were not measured.
        """
        measurement = StandardisedMetric(self.metric)
        if measurement not in space.of_items:
            raise ConfigError(
                f"flap_global needs {measurement} of every head and channel, got none, since a run measures only what its "
                "proposer, yardsticks and controls need; add proposer@yardsticks.flap_global=flap_global"
            )
        units, scores = {unit.name: unit for unit in space.grid.units}, space.of_items[measurement]
        order = sorted((score, name) for name, of_items in scores.items() for score in of_items)
        n_removed, left = dict.fromkeys(units, 0), space.target.n_weights
        for _, name in order:
            if left <= 0:
                break
            n_removed[name] += 1
            left -= units[name].weights_per_item
        return {name: n_removed[name] / unit.n_items for name, unit in units.items()}
