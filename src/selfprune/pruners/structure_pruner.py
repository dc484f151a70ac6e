"""What all pruners of heads and channels share: an order by score, in which the lowest go first.

Shape suffixes: O out, C items, W columns per item.
"""

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfprune.allocations.unit import Item
from selfprune.errors import ConfigError, PruningError
from selfprune.pruners.base import PrunedUnit, Pruner
from selfprune.pruners.refit import fit_kept
from selfprune.statistics.base import Statistics
from selfprune.statistics.input_gram import InputGram
from selfprune.statistics.with_gram import WithGram


@dataclass
class StructurePruner(Pruner):
    """A pruner whose items are attention heads, or groups of them, and channels of FFNs.

    Attributes:
        structures: which of them may go: HEAD_GROUP, CHANNEL or both.
        multiple: the channels that an FFN keeps are a multiple of this, or none; GPUs are fast at multiples of 8, or better 64.
        whole: an attention or an FFN goes as a whole or not at all: pruning in depth alone.
        refit: the columns of the reader that stay make up for those that go, by least squares on the calibration inputs.
        percent_damping: of the least squares, as a share of the mean square of the inputs.
    """

    structures: list[Item] = field(default_factory=lambda: [Item.HEAD_GROUP, Item.CHANNEL])
    multiple: int = 1
    whole: bool = False
    refit: bool = False
    percent_damping: float = 0.01

    def __post_init__(self) -> None:
        if not self.structures or Item.WEIGHT in self.structures:
            raise ConfigError(
                "pruner.structures must name what may go, as in pruner.structures=[HEAD_GROUP,CHANNEL], got "
                f"[{','.join(item.value for item in self.structures)}]"
            )
        if self.multiple < 1:
            raise ConfigError(f"pruner.multiple must be 1 or more, got {self.multiple}")
        if not 0 <= self.percent_damping <= 1:
            raise ConfigError(f"pruner.percent_damping must lie in [0, 1], got {self.percent_damping}")

    @property
    def builds_levels(self) -> bool:
        """With a refit: its masks alone would show other damage than the weights that are fitted."""
        return self.refit

    @abstractmethod
    def own_statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """What the scores are made of; the arguments are those of `statistics`."""

    @abstractmethod
    def scores(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """The importance of each item [C] in fp32, by its own statistics; the lowest go first."""

    def statistics(self, n_row_groups: int, n_in: int, n_sequences: int) -> Statistics:
        """Its own, with the inner products of the inputs where readers are fitted."""
        own = self.own_statistics(n_row_groups, n_in, n_sequences)
        if not self.refit or isinstance(own, InputGram):
            return own
        return WithGram(own, InputGram(n_row_groups, n_in, n_sequences))

    def ranks(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """The order in which the items go, as int64 [C]: ascending by score, ties by index.

        Raises:
            PruningError: when a score is not finite.
        """
        scores_C = self.scores(weight_OCW, statistics.own if isinstance(statistics, WithGram) else statistics)
        if not torch.isfinite(scores_C).all():
            raise PruningError(
                "the scores of a unit are not finite: its weights or its calibration inputs hold NaN or infinity; load the model "
                "in a wider dtype (model.dtype=FLOAT32) or check the checkpoint"
            )
        return scores_C.argsort(stable=True).argsort()

    def prune(self, weight_OCW: Tensor, statistics: Statistics, n_pruned: int) -> PrunedUnit:
        """Keeps the ranks from `n_pruned` on, and fits what reads them where that is asked for.

        Raises:
            PruningError: when the count is out of range or a score is not finite.
        """
        n_items = weight_OCW.shape[1]
        if not 0 <= n_pruned <= n_items:
            raise PruningError(f"a unit of {n_items} heads or channels cannot lose {n_pruned}; ask for 0 to {n_items}")
        kept_C = self.ranks(weight_OCW, statistics) >= n_pruned
        gram = statistics.gram if isinstance(statistics, WithGram) else statistics
        if not self.refit or not isinstance(gram, InputGram) or n_pruned in (0, n_items):
            return PrunedUnit(kept_C)
        kept_I = kept_C.repeat_interleave(weight_OCW.shape[2])
        fitted_OI = fit_kept(weight_OCW.flatten(1), gram.sums()[0], kept_I, self.percent_damping)
        return PrunedUnit(kept_C, fitted_OI.to(weight_OCW.dtype))

    def items(self) -> frozenset[Item]:
        """The structures that may go."""
        return frozenset(self.structures)
