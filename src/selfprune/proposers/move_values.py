"""What it is worth to restore or to remove a level of a unit, by gradients of the score or by a look at it."""

from dataclasses import dataclass
from typing import Protocol

from selfprune.allocations.unit import Allocation


@dataclass(frozen=True)
class MoveValues:
    """What the next levels of every unit are worth at an allocation, to first order.

    Attributes:
        restoring: unit name -> fall of the score per level that returns; units without a pruned level are missing.
        removing: unit name -> rise of the score per level that goes; units without a level left are missing.
        n_tokens: tokens that were spent to find out.
    """

    restoring: dict[str, float]
    removing: dict[str, float]
    n_tokens: int


@dataclass(frozen=True)
class Look:
    """What was seen of one allocation, on the budget or off it.

    Attributes:
        score: its mean over the windows; not finite where the allocation breaks the model.
        n_tokens: tokens that were spent to find out.
    """

    score: float
    n_tokens: int


class MoveOracle(Protocol):
    """Values moves, by gradients or by scores."""

    @property
    def n_windows(self) -> int:
        """Windows that there are."""
        ...

    def __call__(self, allocation: Allocation, bracket: float, start: int, n_windows: int) -> MoveValues:
        """The values of the moves around an allocation.

        Args:
            allocation: where.
            bracket: sparsity of a unit by which it is moved either way, at least one level.
            start: first window; past the last one, the first follows.
            n_windows: how many windows.
        """
        ...

    def affords(self, n_windows: int, n_times: int = 1) -> bool:
        """Whether the search can still pay for such values at some allocations, and for scoring what is proposed then."""
        ...

    def known(self, allocation: Allocation) -> MoveValues | None:
        """The last values that were taken there, for whomever, at no further tokens; None where none were."""
        ...

    def look(self, allocation: Allocation, n_windows: int) -> Look | None:
        """The score of an allocation that need not be on the budget; None where the search cannot pay for it.

        Args:
            allocation: where.
            n_windows: how many windows, the first ones.
        """
        ...
