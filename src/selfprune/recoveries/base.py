"""The contract of recoveries, and what a pruner becomes with one.

Shape suffixes: O out, I in, C items, W columns per item, G groups of output rows with an input of their own.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Item, Unit
from selfprune.pruners.base import PrunedUnit, Pruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.pair import StatisticsPair


class Recovery(ABC):
    """Repairs a unit at once when it is pruned; a dataclass that is its own config schema.

    Example:
        >>> pruner = LeastSquares().around(Wanda())
        >>> pruner.prune(weight_OI, statistics, n_pruned).weight_OI
    """

    @abstractmethod
    def around(self, pruner: Pruner) -> Pruner:
        """The pruner that does the same, and repairs what it leaves."""


class UnitRecovery(Recovery):
    """A recovery that looks at one unit and its inputs.

    Attributes:
        adds_biases: whether units get biases that they may not have had.
    """

    adds_biases: bool = False

    @abstractmethod
    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """What it needs to know of the inputs; the arguments are those of `Pruner.statistics`."""

    @abstractmethod
    def repaired(self, weight_OI: Tensor, kept: Tensor, pruned: PrunedUnit, statistics: Statistics) -> PrunedUnit:
        """What a pruner left of a unit, repaired.

        Args:
            weight_OI: the unit's weights before.
            kept: True where a weight stays: [O, I], or [1, I] where whole columns go.
            pruned: what the pruner made of it.
            statistics: of its inputs.

        Raises:
            PruningError: when the statistics are not finite.
        """

    def around(self, pruner: Pruner) -> Pruner:
        """See `Recovery`."""
        return RepairedPruner(pruner, self)


@dataclass
class RepairedPruner(Pruner):
    """A pruner with a recovery.

    Attributes:
        pruner: decides what goes.
        recovery: repairs what it leaves.
    """

    pruner: Pruner
    recovery: UnitRecovery

    @property
    def name(self) -> str:
        """The pruner's."""
        return self.pruner.name

    @property
    def needs_gradients(self) -> bool:
        """As the pruner does."""
        return self.pruner.needs_gradients

    @property
    def needs_inputs(self) -> bool:
        """For the recovery."""
        return True

    @property
    def adds_biases(self) -> bool:
        """Whether the recovery does."""
        return self.recovery.adds_biases

    @property
    def builds_levels(self) -> bool:
        """Where weights are changed: masks alone would show other damage."""
        return self.pruner.builds_levels or not self.adds_biases

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """Those of both."""
        shape = n_row_groups, n_in, n_sequences
        return StatisticsPair(self.pruner.statistics(*shape), self.recovery.statistics(*shape), self.pruner.needs_inputs)

    def see_gradient(self, statistics: Statistics, weight: Tensor, gradient_OI: Tensor) -> None:
        """Told to the pruner's own."""
        assert isinstance(statistics, StatisticsPair)
        self.pruner.see_gradient(statistics.own, weight, gradient_OI)

    def joined(self, of_gradients: Statistics, of_inputs: Statistics) -> Statistics:
        """The pruner's own of the gradients, and the recovery's of the inputs."""
        assert isinstance(of_gradients, StatisticsPair)
        assert isinstance(of_inputs, StatisticsPair)
        return StatisticsPair(of_gradients.own, of_inputs.other, own_sees_inputs=False)

    def prepare(self, statistics: Statistics) -> None:
        """The pruner's own."""
        assert isinstance(statistics, StatisticsPair)
        self.pruner.prepare(statistics.own)

    def ranks(self, weight: Tensor, statistics: Statistics) -> Tensor:
        """The pruner's."""
        assert isinstance(statistics, StatisticsPair)
        return self.pruner.ranks(weight, statistics.own)

    def prune(self, weight: Tensor, statistics: Statistics, n_pruned: int, ranks: Tensor | None = None) -> PrunedUnit:
        """What the pruner removes, and the repair of what is left; a unit that is left whole, or gone, has nothing to repair."""
        assert isinstance(statistics, StatisticsPair)
        pruned = self.pruner.prune(weight, statistics.own, n_pruned, ranks)
        if not n_pruned or (n_pruned == pruned.kept.numel() and not self.adds_biases):
            return pruned
        is_of_columns = weight.ndim == 3
        kept = pruned.kept.repeat_interleave(weight.shape[2])[None] if is_of_columns else pruned.kept
        return self.recovery.repaired(weight.flatten(1) if is_of_columns else weight, kept, pruned, statistics.other)

    def grid(self, units: Sequence[Unit], step: float, most: float = 1.0, finer: Mapping[str, int] | None = None) -> LevelGrid:
        """The pruner's."""
        return self.pruner.grid(units, step, most, finer)

    def items(self) -> frozenset[Item]:
        """The pruner's."""
        return self.pruner.items()

    def level_fraction(self) -> float | None:
        """The pruner's."""
        return self.pruner.level_fraction()

    def level_option(self) -> str:
        """The pruner's."""
        return self.pruner.level_option()

    def input_multiple(self) -> int:
        """The pruner's."""
        return self.pruner.input_multiple()
