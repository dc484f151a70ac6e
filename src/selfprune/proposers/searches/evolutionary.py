"""Evolutionary search by level swaps, perturbation and crossover (after EvoPress, arXiv 2410.14649, Algorithm 1).

EvoPress swaps single levels between two units. Here a swap may also move weights between two module kinds or two blocks, and
by more than one level, and a perturbation shifts all kinds and blocks at once, since a few hundred candidates do not get far
by single levels. `groups: [UNIT]`, `max_shift: 0` and zero rates are the published mutation. Limits: blind to gradients, so
it needs many tokens on large models.
"""

import math
import random
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from selfprune.allocations.candidate import Candidate, Proposal, best
from selfprune.allocations.unit import Allocation, Unit, n_weights
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace
from selfprune.proposers.searches.random import draw_offsets


class Group(str, Enum):
    """What a swap moves weights between."""

    UNIT = "UNIT"
    BLOCK = "BLOCK"
    KIND = "KIND"


@dataclass
class Evolutionary(ProposerConfig):
    """Children of the best candidates so far.

    Attributes:
        n_parents: the best candidates that may become parents.
        crossover_rate: share of children with two parents.
        perturb_rate: share of children that are a parent plus Gaussian offsets per kind, per block and per unit.
        max_spread: highest standard deviation of these offsets, in sparsity.
        max_swaps: a mutation makes min(U{1..max}, U{1..max}) swaps.
        max_shift: a swap moves up to this share of the smaller group's weights; 0 moves one level.
        groups: what swaps move weights between; repeat one to make it likelier.
    """

    n_parents: int = 3
    crossover_rate: float = 0.15
    perturb_rate: float = 0.5
    max_spread: float = 0.08
    max_swaps: int = 3
    max_shift: float = 0.3
    groups: list[Group] = field(default_factory=lambda: [Group.UNIT, Group.UNIT, Group.BLOCK, Group.KIND])

    def __post_init__(self) -> None:
        if self.n_parents < 1 or self.max_swaps < 1 or not self.groups:
            raise ConfigError(
                f"the evolutionary proposer needs n_parents >= 1, max_swaps >= 1 and a group, got {self.n_parents}, "
                f"{self.max_swaps} and {self.groups}"
            )
        for name in ("crossover_rate", "perturb_rate", "max_spread", "max_shift"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} of the evolutionary proposer must lie in [0, 1], got {getattr(self, name)}")
        if self.crossover_rate + self.perturb_rate > 1:
            raise ConfigError(
                f"crossover_rate and perturb_rate must not exceed 1 together, got {self.crossover_rate} and {self.perturb_rate}"
            )

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A population that begins empty; the first children come of the uniform allocation."""
        return EvolutionaryProposer(space, self, random.Random(seed))


@dataclass(frozen=True)
class Offspring:
    """A child before it is put on the budget, which takes longer than to draw it.

    Attributes:
        sparsities: unit name -> wished sparsity.
        operator: how it was made.
        parents: ids of the candidates that it was made from.
    """

    sparsities: dict[str, float]
    operator: str
    parents: tuple[int, ...] = ()


@dataclass
class EvolutionaryProposer:
    """Keeps the best candidates it was told of, whoever proposed them."""

    space: SearchSpace
    settings: Evolutionary
    rng: random.Random
    name: str = field(default="evolutionary", init=False)

    def __post_init__(self) -> None:
        units = self.space.grid.units
        self._parents: list[Candidate] = []
        self._seen: set[tuple[int, ...]] = set()
        self._groups: dict[Group, list[list[Unit]]] = {
            Group.UNIT: [[unit] for unit in units],
            Group.BLOCK: [[u for u in units if u.block == block] for block in dict.fromkeys(u.block for u in units)],
            Group.KIND: [[u for u in units if u.kind == kind] for kind in dict.fromkeys(u.kind for u in units)],
        }

    def ask(self, n: int) -> list[Proposal]:
        """`n` children; one that was proposed before is drawn again a few times, then left out."""
        return [child for _ in range(n) if (child := self._new_child()) is not None]

    def tell(self, candidates: list[Candidate]) -> None:
        """Better candidates replace the parents."""
        self._seen.update(self.space.grid.genome(c.allocation) for c in candidates if c.proposal.allocation is not None)
        self._parents = best(self._parents + candidates, self.settings.n_parents)

    def _new_child(self) -> Proposal | None:
        for _ in range(10):
            draft = self.offspring()
            child = self.space.project(draft.sparsities)
            genome = self.space.grid.genome(child)
            if genome not in self._seen:
                self._seen.add(genome)
                return Proposal(child, self.name, draft.operator, draft.parents)
        return None

    def offspring(self) -> Offspring:
        """A child of the best candidates that it was told of, as the operators draw it."""
        units = self.space.grid.units
        if not self._parents:
            return Offspring(self._mutate(self._uniform), "swap")
        operator = self.rng.random()
        if operator < self.settings.crossover_rate and len(self._parents) > 1:
            first, second = self.rng.sample(self._parents, 2)
            return Offspring(self._cross(first.allocation, second.allocation), "crossover", (first.id, second.id))
        parent = self.rng.choice(self._parents)
        if operator < self.settings.crossover_rate + self.settings.perturb_rate:
            offsets = draw_offsets(units, self.settings.max_spread, self.rng)
            sparsities = self.space.grid.sparsities(parent.allocation)
            return Offspring({name: sparsities[name] + offsets[name] for name in sparsities}, "perturb", (parent.id,))
        return Offspring(self._mutate(parent.allocation), "swap", (parent.id,))

    @cached_property
    def _uniform(self) -> Allocation:
        return self.space.uniform()

    def _mutate(self, parent: Allocation) -> dict[str, float]:
        sparsities = self.space.grid.sparsities(parent)
        n_swaps = min(self.rng.randint(1, self.settings.max_swaps), self.rng.randint(1, self.settings.max_swaps))
        for _ in range(n_swaps):
            candidates = self._groups[self.rng.choice(self.settings.groups)]
            if len(candidates) > 1:
                restored, pruned = self.rng.sample(candidates, 2)
                n_moved = self._n_moved(restored, pruned)
                _shift(sparsities, restored, -n_moved)
                _shift(sparsities, pruned, n_moved)
        return sparsities

    def _n_moved(self, restored: list[Unit], pruned: list[Unit]) -> float:
        """Weights that a swap moves: log-uniform between one level of a unit and the largest shift."""
        one_level = max(self.space.grid.step_weights(unit) for unit in (*restored, *pruned))
        most = self.settings.max_shift * min(n_weights(restored), n_weights(pruned))
        return one_level if most <= one_level else math.exp(self.rng.uniform(math.log(one_level), math.log(most)))

    def _cross(self, first: Allocation, second: Allocation) -> dict[str, float]:
        """Each block, or each module kind, from either parent."""
        ours, theirs = self.space.grid.sparsities(first), self.space.grid.sparsities(second)
        groups = self._groups[self.rng.choice([Group.BLOCK, Group.KIND])]
        taken = {unit.name for group in groups if self.rng.random() < 0.5 for unit in group}
        return {name: theirs[name] if name in taken else ours[name] for name in ours}


def _shift(sparsities: dict[str, float], group: list[Unit], n_moved: float) -> None:
    for unit in group:
        sparsities[unit.name] += n_moved / n_weights(group)
