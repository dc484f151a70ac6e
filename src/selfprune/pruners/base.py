"""The contract of pruners.

Shape suffixes: O out, I in, C items, W columns per item.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from selfprune.allocations.unit import Item
from selfprune.statistics.base import NoStatistics, Statistics


@dataclass(frozen=True)
class PrunedUnit:
    """What a pruner decided.

    Attributes:
        kept: True for each item that is kept; of single weights [O, I], of structures [C].
        weight_OI: new values of the matrix, zero where pruned; None when kept weights stay as they are.
    """

    kept: Tensor
    weight_OI: Tensor | None = None

    @property
    def n_removed(self) -> int:
        """Items that go."""
        return self.kept.numel() - int(self.kept.sum())


@dataclass
class Pruner(ABC):
    """Decides which items of a unit go, given its weights, statistics and level.

    The weights are a matrix [O, I], or [O, C, W] where the items are structures: the columns by which each head or channel is
    read. A search needs many levels of a unit at once, and therefore an order in which its items go (`ranks`).

    Attributes:
        needs_gradients: whether its statistics are fed by a backward pass instead of the units' inputs.

    Example:
        >>> pruner = Wanda()
        >>> statistics = pruner.statistics(n_row_groups=1, n_in=weight_OI.shape[1], n_sequences=8)
        >>> statistics.update(input_NTI)
        >>> pruned = pruner.prune(weight_OI, statistics, n_pruned=100)
    """

    needs_gradients: ClassVar[bool] = False

    @abstractmethod
    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """An empty accumulator of what this pruner needs gathered about a unit's input.

        Args:
            n_row_groups: how many equal groups of output rows have inputs of their own (experts); 1 for a Linear.
            n_in: input width.
            n_sequences: calibration sequences that will come in all.
        """

    def prepare(self, statistics: Statistics) -> None:  # noqa: B027
        """Works out, once and in place, what every pruning with complete statistics needs of them; nothing by default.

        Raises:
            PruningError: when they are not finite.
        """

    @abstractmethod
    def ranks(self, weight: Tensor, statistics: Statistics) -> Tensor:
        """The order in which the items go: a permutation of 0, 1, 2, ... in whole numbers, for weights [O, I] or structures [C].

        Raises:
            PruningError: when it cannot be told, as from statistics that are not finite.
        """

    @abstractmethod
    def prune(self, weight: Tensor, statistics: Statistics, n_pruned: int) -> PrunedUnit:
        """Removes exactly `n_pruned` items, also where nothing was seen.

        Raises:
            PruningError: when the count is out of range or the statistics are not finite.
        """

    def sees_weights_alone(self) -> bool:
        """Whether it gathers nothing, so that no input can change what it does."""
        return isinstance(self.statistics(1, 1, 1), NoStatistics)

    def items(self) -> frozenset[Item]:
        """What it removes: single weights, unless it says otherwise."""
        return frozenset({Item.WEIGHT})

    @property
    def builds_levels(self) -> bool:
        """Whether a search compares the weights that it makes, unless told otherwise.

        Worth it where they differ much from the masks of its scores, and cost little beside a score (experiments/equal_budget).
        """
        return False

    def level_fraction(self) -> float | None:
        """The one sparsity besides 0 that a unit may have; None, as by default, where it may have any."""
        return None

    def level_option(self) -> str:
        """The option that leaves a unit that one sparsity, as `pruner.pattern=2:4`; empty where none does."""
        return ""

    def input_multiple(self) -> int:
        """What the input width of a unit must be a multiple of."""
        return 1
