"""Measures what each unit costs when it is pruned alone."""

import math
from collections.abc import Callable

from selfprune.search.scoring import Scorer


def measure_sensitivities(
    scorer: Scorer, sparsity: float, n_windows: int, on_unit: Callable[[int], None] = lambda n_done: None
) -> dict[str, float]:
    """Unit name -> rise of the score when this unit alone is pruned, at the first level that reaches a sparsity.

    Args:
        scorer: measures the units in their order, or reads back what a resumed run had measured.
        sparsity: of the unit; where no level reaches it, the highest counts.
        n_windows: the first search windows, on which the scores are compared with those of the dense model.
        on_unit: called with the number of units that are done.
    """
    units, levels = scorer.grid.units, scorer.grid.levels
    dense = dict.fromkeys(levels, 0)
    dense_scores = scorer.bench.dense_scores[:n_windows]
    rises = {}
    for i, unit in enumerate(units):
        alone = {**dense, unit.name: levels[unit.name].at_least(sparsity)}
        scores = scorer.recall({"sensitivity": unit.name}, alone, range(n_windows))
        rises[unit.name] = (math.fsum(scores) - math.fsum(dense_scores)) / n_windows
        on_unit(i + 1)
    return rises
