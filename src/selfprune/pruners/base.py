"""The contract of pruners.

Shape suffixes: O out, I in, C items, W columns per item.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Item, Unit
from selfprune.statistics.base import NoStatistics, Statistics


@dataclass(frozen=True)
class PrunedUnit:
    """What a pruner decided.

    Attributes:
        kept: True for each item that is kept; of single weights [O, I], of structures [C].
        weight_OI: new values of the matrix, zero where pruned; None when kept weights stay as they are.
        bias_O: what is added to the output, in fp32; None for nothing.
    """

    kept: Tensor
    weight_OI: Tensor | None = None
    bias_O: Tensor | None = None

    @property
    def n_removed(self) -> int:
        """Items that go."""
        return self.kept.numel() - int(self.kept.sum())


@dataclass
class Pruner(ABC):
    """Decides which items of a unit go, given its weights, statistics and level.

    The weights are a matrix [O, I], or [O, C, W] where the items are structures: the columns by which each head or channel is
    read. A search needs many levels of a unit at once, and therefore an order in which its items go (`ranks`).

    Example:
        >>> pruner = Wanda()
        >>> statistics = pruner.statistics(n_row_groups=1, n_in=weight_OI.shape[1], n_sequences=8)
        >>> statistics.update(input_NTI)
        >>> pruned = pruner.prune(weight_OI, statistics, n_pruned=100)
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__.lower()

    @property
    def needs_gradients(self) -> bool:
        """Whether its statistics are told of gradients (`see_gradient`)."""
        return False

    @property
    def needs_inputs(self) -> bool:
        """Whether its statistics are fed the unit's inputs."""
        return not self.needs_gradients

    @property
    def adds_biases(self) -> bool:
        """Whether `prune` may say what is to be added to a unit's output."""
        return False

    @abstractmethod
    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """An empty accumulator of what this pruner needs gathered about a unit's input.

        Args:
            n_row_groups: how many equal groups of output rows have inputs of their own (experts); 1 for a Linear.
            n_in: input width.
            n_sequences: calibration sequences that will come in all.
        """

    def see_gradient(self, statistics: Statistics, weight: Tensor, gradient_OI: Tensor) -> None:
        """Adds the gradient of one window by a unit's weight to its statistics."""
        statistics.update(gradient_OI)

    def joined(self, of_gradients: Statistics, of_inputs: Statistics) -> Statistics:
        """One from the statistics that saw a unit's gradients, and those that saw its inputs, where it needs both."""
        return of_gradients

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
    def prune(self, weight: Tensor, statistics: Statistics, n_pruned: int, ranks: Tensor | None = None) -> PrunedUnit:
        """Removes exactly `n_pruned` items, also where nothing was seen.

        Args:
            weight: of the unit.
            statistics: of its inputs or gradients.
            n_pruned: items that go.
            ranks: what `ranks` says of them, where that is known already; it may be left unused.

        Raises:
            PruningError: when the count is out of range or the statistics are not finite.
        """

    def sees_weights_alone(self) -> bool:
        """Whether it gathers nothing, so that no input can change what it does."""
        return isinstance(self.statistics(1, 1, 1), NoStatistics)

    def items(self) -> frozenset[Item]:
        """What it removes: single weights, unless it says otherwise."""
        return frozenset({Item.WEIGHT})

    def grid(self, units: Sequence[Unit], step: float, most: float = 1.0, finer: Mapping[str, int] | None = None) -> LevelGrid:
        """The levels that it lets units have.

        Args:
            units: in model order.
            step: between levels, as a fraction of the smallest unit.
            most: highest sparsity of a unit.
            finer: glob over unit kinds -> how many levels take the place of one.
        """
        fraction = self.level_fraction()
        if fraction is not None:
            return LevelGrid.with_single_level(units, fraction)
        return LevelGrid.with_constant_step(units, step, most, finer)

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
