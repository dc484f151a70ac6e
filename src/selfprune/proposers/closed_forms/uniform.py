"""The same sparsity everywhere: the allocation of the published Wanda and SparseGPT."""

from dataclasses import dataclass

from selfprune.proposers.base import ClosedForm, SearchSpace


@dataclass
class Uniform(ClosedForm):
    """Every unit at the target."""

    def sparsities(self, space: SearchSpace) -> dict[str, float]:
        """The target, for every unit."""
        return {unit.name: space.target_sparsity for unit in space.grid.units}
