"""What a pruned model must save."""

import math
from dataclasses import dataclass

from selfprune.allocation import LevelGrid
from selfprune.errors import ConfigError


@dataclass
class Budget:
    """The sparsity target over all units' weights.

    Attributes:
        sparsity: removed weights over all weights of the units, in [0, 1).
    """

    sparsity: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise ConfigError(f"budget.sparsity must lie in [0, 1), got {self.sparsity}; 0.7 removes seven weights of ten")

    def n_target_weights(self, grid: LevelGrid) -> int:
        """Weights that an allocation must remove at least."""
        return math.ceil(self.sparsity * grid.n_weights() - 1e-6)
