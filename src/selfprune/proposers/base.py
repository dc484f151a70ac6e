"""The proposer contract, and the two shapes that proposers take."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from selfprune.allocation import Allocation, LevelGrid, project
from selfprune.candidate import Candidate, Proposal
from selfprune.language_models.base import LanguageModel


@dataclass(frozen=True)
class SearchSpace:
    """All that a proposer may know before the first score.

    Attributes:
        grid: units and allowed levels.
        n_target_weights: weights to remove.
        sensitivities: unit name -> rise of the score when this unit alone is pruned to the target; below zero by noise, not
            finite where that breaks the model; empty if unmeasured.
        outlier_ratios: block -> share of its Wanda metrics above M times their mean (OWL's D, as a fraction); empty if
            unmeasured.
    """

    grid: LevelGrid
    n_target_weights: int
    sensitivities: dict[str, float] = field(default_factory=dict)
    outlier_ratios: dict[int, float] = field(default_factory=dict)

    @property
    def target_sparsity(self) -> float:
        """Target over all weights of the units."""
        return self.n_target_weights / self.grid.n_weights()

    def project(self, sparsities: dict[str, float]) -> Allocation:
        """The allocation on the budget nearest to these sparsities."""
        return project(sparsities, self.grid, self.n_target_weights)


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

    @abstractmethod
    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """Unit name -> wished sparsity, before it is put on the budget."""

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A proposer that says this one allocation, once."""
        name = type(self).__name__.lower()
        return FixedProposals(name, [Proposal(space.project(self.sparsities(space)), name)])


class FixedProposals:
    """Says proposals that are known from the start, in order, and nothing more.

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
