"""The proposer contract, and the two shapes that proposers take.

Shape suffixes: O out, I in, N sequences, T tokens, D hidden width, C items, W columns per item.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor

from selfprune.allocations.candidate import Candidate, Proposal
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Allocation
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.move_values import MoveOracle
from selfprune.statistics.input_fluctuation import Metric


@dataclass(frozen=True)
class Measurement(ABC):  # noqa: B024 - what it looks at, its kinds say
    """One number per block, or per item, of the dense model, taken during calibration for the closed forms that need it.

    Equal settings are the same measurement, which is taken once, however many closed forms need it.
    """


@dataclass(frozen=True)
class WeightMeasurement(Measurement):
    """A measurement of a block's weights.

    Attributes:
        needs_inputs: whether it looks at the Wanda metrics; one that looks at weights alone asks for no statistics.
    """

    needs_inputs: ClassVar[bool] = True

    @abstractmethod
    def of_block(self, weights: Sequence[Tensor], metrics: Sequence[Tensor]) -> float:
        """The number of one block.

        Args:
            weights: the block's weights, one matrix [O, I] per Linear and expert.
            metrics: their Wanda metrics |W|·sqrt(s) in fp32 in the same order; empty unless `needs_inputs`.
        """


@dataclass(frozen=True)
class HiddenMeasurement(Measurement):
    """A measurement of the hidden states around a block."""

    @abstractmethod
    def of_block(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
        """The number of one block.

        Args:
            inputs: per batch of calibration windows the hidden states [N, T, D] that enter the block.
            outputs: those that leave it.
        """


@dataclass(frozen=True)
class ItemMeasurement(Measurement):
    """A measurement of every head and channel.

    Attributes:
        metric: of FLAP, which it looks at.
    """

    metric: Metric

    @abstractmethod
    def of_unit(self, columns_CW: Tensor) -> list[float]:
        """The numbers of a unit's items.

        Args:
            columns_CW: the metric of each column of the reader, squared where an item has several.
        """


@dataclass(frozen=True)
class SearchSpace:
    """All that a proposer may know before the first score.

    Attributes:
        grid: units and allowed levels.
        target: what an allocation must save.
        sensitivities: unit name -> rise of the score when this unit alone is pruned to the target; below zero by noise, not
            finite where that breaks the model; empty if unmeasured.
        measured: measurement -> block -> its number; holds what the closed forms of the run need.
        move_values: gradients of the score; None where there are none to be had.
        of_items: measurement -> unit name -> the numbers of its items; holds what the closed forms of the run need.
    """

    grid: LevelGrid
    target: Target
    sensitivities: dict[str, float] = field(default_factory=dict)
    measured: Mapping[Measurement, Mapping[int, float]] = field(default_factory=dict)
    move_values: MoveOracle | None = None
    of_items: Mapping[ItemMeasurement, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    @property
    def target_sparsity(self) -> float:
        """What the uniform allocation removes to meet the target, over all weights of the units."""
        return self.target.n_weights / self.grid.n_weights()

    def project(self, sparsities: dict[str, float]) -> Allocation:
        """The allocation on the budget nearest to these sparsities."""
        return self.target.project(sparsities)

    def uniform(self) -> Allocation:
        """The allocation on the budget nearest to one sparsity of all units."""
        return self.project({unit.name: self.target_sparsity for unit in self.grid.units})

    def stand(self, champions: Sequence[Candidate]) -> Allocation:
        """Where a search stands: at its incumbent, the last champion; before the first, at the uniform allocation."""
        return champions[-1].allocation if champions else self.uniform()


class Proposer(Protocol):
    """Asks for allocations to be scored, and is told the scores.

    A proposer draws from the one generator it was given and from what it was told, and from nothing else. So a resumed search
    that asks and tells again from the start, with the recorded scores, stands where the broken one stood.

    Example:
        >>> for proposal in proposer.ask(4): ...
        >>> proposer.tell(candidates)
    """

    name: str

    def ask(self, n: int) -> list[Proposal]:
        """At most `n` proposals; fewer, or none, when the proposer has no more to say."""
        ...

    def tell(self, candidates: list[Candidate]) -> None:
        """The fates of candidates, of this proposer and of others, in archive order."""
        ...


class ProposerConfig(ABC):
    """The settings of a proposer; a dataclass that is its own config schema."""

    @property
    def asks_language_model(self) -> bool:
        """Whether `build` hands the language model on."""
        return False

    @property
    def needs_sensitivities(self) -> bool:
        """Whether `build` fails where the units' sensitivities were not measured."""
        return False

    @property
    def first_looks(self) -> tuple[int, int]:
        """At how many allocations it must know the values of moves before it speaks, and on how many windows each."""
        return 0, 0

    @property
    def looks_left_out(self) -> dict[str, tuple[int, int]]:
        """Option of its own that does without some first looks -> the first looks that then remain."""
        return {}

    def measurements(self) -> list[Measurement]:
        """What must be known about the blocks before `build`."""
        return []

    @abstractmethod
    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """The proposer at the start of a search.

        Args:
            space: units, levels, budget and measurements.
            seed: the one source of the proposer's randomness.
            language_model: for proposers that ask one; the others leave it alone.
        """


class ClosedForm(ProposerConfig):
    """A formula that gives one allocation and needs no search."""

    @property
    def name(self) -> str:
        """The name that its proposals carry."""
        return type(self).__name__.lower()

    @abstractmethod
    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """Unit name -> wished sparsity, before it is put on the budget.

        Raises:
            ConfigError: when a measurement that it needs was not taken.
        """

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A proposer that says this one allocation, once."""
        return FixedProposals(self.name, [Proposal(space.project(self.sparsities(space)), self.name)])

    def measured(self, space: SearchSpace) -> Mapping[int, float]:
        """Block -> the number that the one measurement of this closed form gave it.

        Raises:
            ConfigError: when it was not taken.
        """
        (measurement,) = self.measurements()
        if measurement not in space.measured:
            raise ConfigError(
                f"{self.name} needs {measurement} of every block, got none, since a run measures only what its proposer, "
                f"yardsticks and controls need; add proposer@yardsticks.{self.name}={self.name}"
            )
        return space.measured[measurement]


def between_extremes(numbers: Mapping[int, float], if_equal: float = 0.0) -> dict[int, float]:
    """Block -> where its number lies from the lowest (0) to the highest (1); `if_equal` for all where they are one number."""
    low, high = min(numbers.values()), max(numbers.values())
    return {block: (number - low) / (high - low) if high > low else if_equal for block, number in numbers.items()}


class FixedProposals:
    """Proposes what is known from the start, in order.

    Args:
        name: of the proposer.
        proposals: what it will say.
    """

    def __init__(self, name: str, proposals: Sequence[Proposal]) -> None:
        self.name = name
        self._waiting = list(proposals)

    def ask(self, n: int) -> list[Proposal]:
        """The next ones."""
        said, self._waiting = self._waiting[:n], self._waiting[n:]
        return said

    def tell(self, candidates: list[Candidate]) -> None:
        """Nothing is learnt."""
