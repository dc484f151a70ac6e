"""Puts wished sparsities on a budget: the arithmetic of `project`, for any cost that never falls as the level rises."""

from collections.abc import Mapping, Sequence

from selfprune.allocations.cost import UnitCost


def meet_target(sparsities: Mapping[str, float], costs: Mapping[str, UnitCost], n_target: int) -> dict[str, int]:
    """The levels nearest to the wished sparsities that save the target.

    Args:
        sparsities: unit name -> wished sparsity, finite.
        costs: unit name -> what its levels save.
        n_target: what must be saved at least; 0 up to what the highest levels save.

    Returns:
        unit name -> useful level. The surplus is less than the step of any unit that could give one back.
    """
    pairs = [(sparsity, costs[name]) for name, sparsity in sparsities.items()]
    low, high = (-1.0, 0.0) if _total(pairs, shift=0.0) > n_target else (0.0, 1.0)
    span = 1.0 + max(abs(sparsity) for sparsity in sparsities.values())
    low, high = low * span, high * span
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if _total(pairs, middle) < n_target else (low, middle)
    levels, remainder = {}, {}
    for name, sparsity in sparsities.items():
        levels[name], remainder[name] = costs[name].below(sparsity + high)
    by_remainder = sorted(sparsities, key=lambda name: -remainder[name])
    _raise_in_place(levels, by_remainder, costs, n_target)
    _give_back_in_place(levels, by_remainder[::-1], costs, n_target)
    return levels


def _total(pairs: Sequence[tuple[float, UnitCost]], shift: float) -> float:
    return sum(cost.near(sparsity + shift) for sparsity, cost in pairs)


def _saved(levels: Mapping[str, int], costs: Mapping[str, UnitCost]) -> int:
    return sum(costs[name].saved(level) for name, level in levels.items())


def _raise_in_place(levels: dict[str, int], order: Sequence[str], costs: Mapping[str, UnitCost], n_target: int) -> None:
    """Raises one unit after the other by a step, from the first again after the last, until the target is met."""
    missing = n_target - _saved(levels, costs)
    while missing > 0:
        for name in order:
            if missing > 0 and levels[name] < costs[name].highest:
                before, levels[name] = levels[name], costs[name].next(levels[name])
                missing -= costs[name].saved(levels[name]) - costs[name].saved(before)


def _give_back_in_place(levels: dict[str, int], order: Sequence[str], costs: Mapping[str, UnitCost], n_target: int) -> None:
    """Gives back steps that are not needed, the largest first, of equal ones the first in the order."""
    surplus = _saved(levels, costs) - n_target
    while surplus > 0:
        steps = {name: _last_step(levels[name], costs[name]) for name in order if levels[name] > 0}
        largest = max((name for name in steps if steps[name] <= surplus), key=steps.__getitem__, default=None)
        if largest is None:
            return
        levels[largest] = costs[largest].previous(levels[largest])
        surplus -= steps[largest]


def _last_step(level: int, cost: UnitCost) -> int:
    """What a level above 0 saves more than the one below."""
    return cost.saved(level) - cost.saved(cost.previous(level))
