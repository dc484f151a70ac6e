"""EvoPress: (1+λ) evolution by level swaps (Sieberling et al., 2024, arXiv 2410.14649, algorithm 1).

A child makes min(U{1..3}, U{1..3}) swaps; each restores one level of one unit and removes one of another. The best of the last
heat, in which the parent runs again, is the next parent. `search=evopress` adds the published selection: 64 offspring, of which
8 and then 2 go on, each stage on fresh windows.

Limits: blind to gradients, and one level at a time; so it takes hundreds of generations.
"""

import random
from dataclasses import dataclass, field

from selfprune.allocations.candidate import Candidate, Proposal, past_incumbents
from selfprune.allocations.unit import Allocation
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace


@dataclass
class EvoPress(ProposerConfig):
    """Children of one parent, which begins as the uniform allocation.

    Attributes:
        max_swaps: a child makes min(U{1..max}, U{1..max}) swaps.
    """

    max_swaps: int = 3

    def __post_init__(self) -> None:
        if self.max_swaps < 1:
            raise ConfigError(f"max_swaps of EvoPress must be at least 1, got {self.max_swaps}; the published value is 3")

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A parent at the uniform allocation."""
        return EvoPressProposer(space, self, random.Random(seed))


@dataclass
class EvoPressProposer:
    """Mutates the parent."""

    space: SearchSpace
    settings: EvoPress
    rng: random.Random
    name: str = field(default="evopress", init=False)

    def __post_init__(self) -> None:
        self._champions: list[Candidate] = []

    def ask(self, n: int) -> list[Proposal]:
        """Exactly `n` children; before the first race the parent is one of them."""
        parent = self.space.stand(self._champions)
        ids = tuple(champion.id for champion in self._champions[-1:])
        children = [Proposal(self._mutate(parent), self.name, "swap", ids) for _ in range(n)]
        if n and not ids:
            children[0] = Proposal(parent, self.name, "start")
        return children

    def tell(self, candidates: list[Candidate]) -> None:
        """Whoever took the incumbent's place, in the last race that both ran, becomes the parent."""
        self._champions = past_incumbents(self._champions, candidates)

    def _mutate(self, parent: Allocation) -> Allocation:
        grid = self.space.grid
        child = dict(parent)
        n_swaps = min(self.rng.randint(1, self.settings.max_swaps), self.rng.randint(1, self.settings.max_swaps))
        for _ in range(n_swaps):
            down = [name for name in grid.levels if child[name] > 0]
            up = [name for name, levels in grid.levels.items() if child[name] < levels.highest]
            if not down or not up:
                break
            restored = self.rng.choice(down)
            pruned = self.rng.choice([name for name in up if name != restored] or [restored])
            child[restored] = grid.levels[restored].previous(child[restored])
            child[pruned] = grid.levels[pruned].next(child[pruned])
        if grid.n_removed_weights(child) == grid.n_removed_weights(parent) and self.space.target.is_met(child):
            return child
        # Where steps differ in weights, a swap leaves the budget by less than a step.
        return self.space.project(grid.sparsities(child))
