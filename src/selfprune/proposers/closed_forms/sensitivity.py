"""Allocations from the measured sensitivity of each unit, under a power law of the damage.

If pruning unit u alone to the target S raises the score by r_u, and its damage grows as r_u·(s/S)^p, then minimising the sum
of damages at a fixed total of weights n_u·s_u gives s_u ∝ (n_u / r_u)^(1 / (p − 1)) (Lagrange; the same reasoning as for
bit allocation by Hessian traces in HAWQ-V2, arXiv 1911.03852). The true p is unknown, so several are proposed. Limits: damages
of units pruned together do not simply add up.
"""

import math
from dataclasses import dataclass, field

from selfprune.allocations.candidate import Proposal
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import FixedProposals, Proposer, ProposerConfig, SearchSpace


@dataclass
class Sensitivity(ProposerConfig):
    """One allocation per exponent.

    Attributes:
        exponents: the powers p, above 1; high ones stay near uniform.
    """

    exponents: list[float] = field(default_factory=lambda: [8.0, 6.0, 4.0, 3.0, 2.5])

    def __post_init__(self) -> None:
        if not self.exponents or any(p <= 1 for p in self.exponents):
            raise ConfigError(f"the exponents of the sensitivity proposer must exceed 1, got {self.exponents}")

    @property
    def needs_sensitivities(self) -> bool:
        """Always."""
        return True

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """All its proposals are known at once."""
        return FixedProposals("sensitivity", [self._proposal(space, p) for p in self.exponents])

    def _proposal(self, space: SearchSpace, exponent: float) -> Proposal:
        highest = max((rise for rise in space.sensitivities.values() if math.isfinite(rise)), default=0.0)
        floor = max(1e-3 * highest, 1e-12)
        # A unit that breaks the model when it is pruned alone has no number; it counts as the most sensitive.
        rises = {
            name: max(rise, floor) if math.isfinite(rise) else max(highest, floor) for name, rise in space.sensitivities.items()
        }
        ratios = {unit.name: unit.n_weights / rises[unit.name] for unit in space.grid.units}
        # Over the largest, lest an exponent near 1 overflows.
        largest = max(ratios.values())
        wished = {name: (ratio / largest) ** (1 / (exponent - 1)) for name, ratio in ratios.items()}
        scale = space.target.n_weights / sum(wished[unit.name] * unit.n_weights for unit in space.grid.units)
        return Proposal(space.project({name: scale * wish for name, wish in wished.items()}), "sensitivity", f"p={exponent:g}")
