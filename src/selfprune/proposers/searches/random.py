"""Random search, the honest control: allocations drawn around the target, on the same budget as all others."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from selfprune.allocations.candidate import Candidate, Proposal
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace


@dataclass
class Random(ProposerConfig):
    """Gaussian offsets per module kind, per block and per unit, each with a spread drawn anew.

    Independent offsets per unit alone nearly always lose to uniform; correlated ones give random search a fair chance.

    Attributes:
        max_spread: highest standard deviation of an offset, in sparsity.
    """

    max_spread: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.max_spread <= 1:
            raise ConfigError(f"max_spread of random search must lie in (0, 1], got {self.max_spread}; 0.15 is the default")

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """Random search from one seed."""
        return RandomProposer(space, self, random.Random(seed))


@dataclass
class RandomProposer:
    """Draws without learning."""

    space: SearchSpace
    settings: Random
    rng: random.Random
    name: str = field(default="random", init=False)

    def ask(self, n: int) -> list[Proposal]:
        """Exactly `n` draws."""
        return [Proposal(self.space.project(self._draw()), self.name, "draw") for _ in range(n)]

    def tell(self, candidates: list[Candidate]) -> None:
        """Nothing is learnt."""

    def _draw(self) -> dict[str, float]:
        offsets = draw_offsets(self.space.grid.units, self.settings.max_spread, self.rng)
        return {name: self.space.target_sparsity + offset for name, offset in offsets.items()}


def draw_offsets(units: Sequence[Unit], max_spread: float, rng: random.Random) -> dict[str, float]:
    """Unit name -> the sum of a Gaussian offset of its kind, of its block and of its own.

    Args:
        units: the units.
        max_spread: each of the three standard deviations is drawn from [0, max_spread].
        rng: the generator.
    """
    by_kind, by_block, by_unit = (rng.uniform(0, max_spread) for _ in range(3))
    kinds = {kind: rng.gauss(0, by_kind) for kind in dict.fromkeys(unit.kind for unit in units)}
    blocks = {block: rng.gauss(0, by_block) for block in dict.fromkeys(unit.block for unit in units)}
    return {unit.name: kinds[unit.kind] + blocks[unit.block] + rng.gauss(0, by_unit) for unit in units}
