"""What every level store does: swaps the weights of the units whose level changed, and brings the dense model back.

Shape suffixes: O out, I in.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation, Unit
from selfprune.levels.dense_weights import DenseWeights
from selfprune.models.loading import LoadedModel
from selfprune.models.units import weight_view
from selfprune.pruners.base import Pruner
from selfprune.statistics.base import Statistics


class LevelStore(ABC):
    """The dense weights of the units, and their weights at every level.

    Args:
        loaded: the dense model.
        grid: units and their levels.
        pruner: decides what goes.
        dense: keeps the dense weights; copies when None.

    Example:
        >>> for units, statistics in calibrate_blocks(loaded, windows_NT, pruner, batch_size):
        ...     store.take(units, statistics)
        >>> store.load(allocation)      # the model now is pruned so
        >>> store.restore()             # and dense again

    Attributes:
        grid: units and their levels.
        loaded: the model that is changed in place.
        allocation: what the model holds now.
    """

    def __init__(self, loaded: LoadedModel, grid: LevelGrid, pruner: Pruner, dense: DenseWeights | None = None) -> None:
        self.loaded = loaded
        self.grid = grid
        self.allocation: Allocation = {unit.name: 0 for unit in grid.units}
        self._pruner = pruner
        self._dense = dense or DenseWeights()
        self._dense_biases = {name: loaded.model.get_parameter(name).clone() for name in loaded.biases}

    def take(self, units: Sequence[Unit], statistics: dict[str, Statistics]) -> None:
        """Learns what the levels of units are made of, once for each, while the model is dense.

        Args:
            units: some of the grid's.
            statistics: unit name -> complete statistics of the dense model; what is left of them may be something else.

        Raises:
            PruningError: when a unit's scores or statistics are not finite; the message names the unit.
        """
        for unit in units:
            self._dense.take(unit, weight_view(self.loaded.model, unit))
        self._take(units, statistics)

    @torch.no_grad()
    def load(self, allocation: Allocation) -> list[str]:
        """Brings the model to an allocation, touching only units whose level changed.

        Returns:
            the names of the units that changed.
        """
        changed = [unit for unit in self.grid.units if self.allocation[unit.name] != allocation[unit.name]]
        for unit in changed:
            weight_view(self.loaded.model, unit).copy_(self.weight_at(unit, allocation[unit.name]))
            # one by one, so that an error on the way leaves the truth behind
            self.allocation[unit.name] = allocation[unit.name]
        self.allocation = dict(allocation)
        return [unit.name for unit in changed]

    @torch.no_grad()
    def restore(self) -> None:
        """Makes the model dense again, whatever else was done to its units meanwhile."""
        for unit in self.grid.units:
            weight_view(self.loaded.model, unit).copy_(self._dense[unit.name])
        for name, bias_O in self._dense_biases.items():
            self.loaded.model.get_parameter(name).copy_(bias_O)
        self.allocation = dict.fromkeys(self.allocation, 0)

    def share(self, n_processes: int) -> None:  # noqa: B027 - most share all that they have by being forked
        """Readies a store that was forked into so many processes, of which each goes on for itself.

        Args:
            n_processes: among which bounds of memory are divided.
        """

    def dense(self, unit: str) -> Tensor:
        """The dense weight of a unit [O, I], whatever the model holds now. Not to be changed.

        Args:
            unit: its name.
        """
        return self._dense[unit]

    @abstractmethod
    def weight_at(self, unit: Unit, level: int) -> Tensor:
        """A unit's weight at a level [O, I], whatever the model holds now. Not to be changed.

        Raises:
            AllocationError: when it is no level of the grid.
        """

    @abstractmethod
    def first_order_change(self, gradient_OI: Tensor, unit: Unit, denser: int) -> float:
        """The sum of a gradient times the change of a unit's weight from what the model holds to a lower level, in fp32.

        Args:
            gradient_OI: of the score by the unit's weight.
            unit: the unit.
            denser: the lower level.
        """

    @abstractmethod
    def _take(self, units: Sequence[Unit], statistics: dict[str, Statistics]) -> None:
        """Learns from statistics; the dense weights are known."""
