"""What all pruners of heads and channels share: an order by score, in which the lowest go first.

Shape suffixes: O out, C items, W columns per item.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Item, Unit
from selfprune.errors import ConfigError, PruningError
from selfprune.pruners.base import PrunedUnit, Pruner
from selfprune.statistics.base import Statistics


@dataclass
class StructurePruner(Pruner):
    """A pruner whose items are attention heads, or groups of them, and channels of FFNs.

    Attributes:
        structures: which of them may go: HEAD_GROUP, CHANNEL or both.
        multiple: the channels that an FFN keeps are a multiple of this, or none; GPUs are fast at multiples of 8, or better 64.
        whole: an attention or an FFN goes as a whole or not at all: pruning in depth alone.
    """

    structures: list[Item] = field(default_factory=lambda: [Item.HEAD_GROUP, Item.CHANNEL])
    multiple: int = 1
    whole: bool = False

    @property
    def knows_experts(self) -> bool:
        """Whether its items are experts."""
        return False

    def __post_init__(self) -> None:
        if not self.structures or Item.WEIGHT in self.structures:
            raise ConfigError(
                "pruner.structures must name what may go, as in pruner.structures=[HEAD_GROUP,CHANNEL], got "
                f"[{','.join(item.value for item in self.structures)}]"
            )
        if (Item.EXPERT in self.structures) != (self.knows_experts and len(self.structures) == 1):
            raise ConfigError(
                f"pruner={self.name} removes {'experts' if self.knows_experts else 'heads and channels'} alone, got "
                f"pruner.structures=[{','.join(item.value for item in self.structures)}]; leave it out"
            )
        if self.multiple < 1:
            raise ConfigError(f"pruner.multiple must be 1 or more, got {self.multiple}")

    @abstractmethod
    def scores(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """The importance of each item [C] in fp32; the lowest go first."""

    def fitted(self, weight_OCW: Tensor, statistics: Statistics, kept_C: Tensor) -> Tensor | None:
        """The reader [O, I] once the columns that stay make up for those that go; None, as by default, where they do not."""
        return None

    def ranks(self, weight_OCW: Tensor, statistics: Statistics) -> Tensor:
        """The order in which the items go, as int64 [C]: ascending by score, ties by index.

        Raises:
            PruningError: when a score is not finite.
        """
        scores_C = self.scores(weight_OCW, statistics)
        if not torch.isfinite(scores_C).all():
            raise PruningError(
                "the scores of a unit are not finite: its weights or its calibration inputs hold NaN or infinity; load the model "
                "in a wider dtype (model.dtype=FLOAT32) or check the checkpoint"
            )
        return scores_C.argsort(stable=True).argsort()

    def prune(self, weight_OCW: Tensor, statistics: Statistics, n_pruned: int, ranks: Tensor | None = None) -> PrunedUnit:
        """Keeps the ranks from `n_pruned` on.

        Raises:
            PruningError: when the count is out of range or a score is not finite.
        """
        n_items = weight_OCW.shape[1]
        if not 0 <= n_pruned <= n_items:
            raise PruningError(f"a unit of {n_items} heads or channels cannot lose {n_pruned}; ask for 0 to {n_items}")
        ranks_C = self.ranks(weight_OCW, statistics) if ranks is None else ranks
        kept_C = ranks_C >= n_pruned
        fitted_OI = None if n_pruned in (0, n_items) else self.fitted(weight_OCW, statistics, kept_C)
        return PrunedUnit(kept_C, None if fitted_OI is None else fitted_OI.to(weight_OCW.dtype))

    def grid(self, units: Sequence[Unit], step: float, most: float = 1.0, finer: Mapping[str, int] | None = None) -> LevelGrid:
        """Numbers of heads and channels."""
        return LevelGrid.of_structures(units, step, most, self.multiple, self.whole)

    def items(self) -> frozenset[Item]:
        """The structures that may go."""
        return frozenset(self.structures)
