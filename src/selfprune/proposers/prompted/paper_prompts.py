"""The four prompts of the published Self-Pruner, filled."""

from collections.abc import Sequence

from selfprune.allocations.candidate import Candidate
from selfprune.allocations.unit import Allocation
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.prompted.layer_rates import LayerRates
from selfprune.proposers.prompted.prompts import fill


class PaperPrompts:
    """Writes the prompts of one search.

    Args:
        space: the search space.
        rates: how allocations are shown.
    """

    def __init__(self, space: SearchSpace, rates: LayerRates) -> None:
        self._rates = rates
        self._task = {
            "n_layers": len(rates.layers),
            "order": rates.order,
            "n_weights": f"{space.grid.n_weights():,}",
            "target": round(100 * space.target_sparsity),
            "form": rates.text(None),
        }

    def population(self, known: Sequence[Allocation]) -> str:
        """Asks for one allocation, other than these."""
        return self._fill("population", known="\n".join(map(self._rates.text, known)) or "none yet")

    def selection(self, shown: Sequence[Candidate], n_parents: int) -> str:
        """Asks which of these, by their numbers from 1, are to be parents."""
        lines = [f"{i + 1}. {self._line(candidate)}" for i, candidate in enumerate(shown)]
        example = ",".join(str(i + 1) for i in range(n_parents))
        return self._fill("selection", shown="\n".join(lines), n_shown=len(shown), n_parents=n_parents, example=example)

    def child(self, operator: str, parents: Sequence[Candidate]) -> str:
        """Asks for a child of these by `crossover` or `mutation`."""
        return self._fill(operator, parents="\n".join(map(self._line, parents)))

    def _line(self, candidate: Candidate) -> str:
        return f"score {candidate.score:.4g} {self._rates.text(candidate.allocation)}"

    def _fill(self, name: str, **values: object) -> str:
        """A prompt file, filled, without the line end that files have."""
        return fill(f"paper_{name}", **self._task, **values)
