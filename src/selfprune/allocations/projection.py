"""Puts wished sparsities on a budget, for whatever the levels save.

Prices of items differ between units and levels, so there is no closed form: one shift of all sparsities is found by bisection.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from selfprune.allocations.levels import Levels
from selfprune.allocations.unit import Allocation
from selfprune.errors import AllocationError

STRAIGHTENED = (8, 16)
"""Steps of the bisection from which on most units are between the same two levels, on one straight line."""


def project(sparsities: Mapping[str, float], levels: Mapping[str, Levels], n_target: int) -> Allocation:
    """The allocation nearest to the wished sparsities that meets the budget.

    All sparsities are shifted by one constant (clipped to what each unit allows) until they save the target, rounded down
    to a level, and raised one level each in order of the largest remainder.

    Args:
        sparsities: unit name -> wished sparsity; any finite number.
        levels: unit name -> its levels and what they save, in the order of the allocation.
        n_target: what must be saved at least, in whatever the levels save.

    Returns:
        An allocation that saves at least `n_target`, and less than one step more when all steps are equal (else less than
        the step of any unit that could give one back).

    Raises:
        AllocationError: when the target is out of reach or a wish is not finite.
    """
    reachable = sum(of_unit.saved[-1] for of_unit in levels.values())
    if not 0 <= n_target <= reachable:
        raise AllocationError(
            f"the budget asks to save {n_target:,}, but the levels of the units allow 0 to {reachable:,}; lower budget.sparsity "
            "or raise search.max_sparsity"
        )
    for name in levels:
        if not math.isfinite(sparsities[name]):
            raise AllocationError(f"a wished sparsity must be finite, got {sparsities[name]} for {name}")
    shift = _shift(sparsities, levels, n_target)
    allocation, remainder = {}, {}
    for name, of_unit in levels.items():
        allocation[name], remainder[name] = of_unit.below(sparsities[name] + shift)
    by_remainder = sorted(levels, key=lambda name: -remainder[name])
    _raise_in_place(allocation, by_remainder, levels, n_target)
    _give_back_in_place(allocation, by_remainder[::-1], levels, n_target)
    return allocation


def _shift(sparsities: Mapping[str, float], levels: Mapping[str, Levels], n_target: int) -> float:
    """By what all sparsities move for the target to be saved, to within rounding."""
    wishes = [sparsities[name] for name in levels]
    lines: list[Callable[[float], float]] = [of_unit.near for of_unit in levels.values()]
    low, high = (-1.0, 0.0) if _total(wishes, lines, shift=0.0) > n_target else (0.0, 1.0)
    span = 1.0 + max(map(abs, wishes))
    low, high = low * span, high * span
    for step in range(64):
        if step in STRAIGHTENED:
            lines = [of_unit.line(wish + low, wish + high) for wish, of_unit in zip(wishes, levels.values(), strict=True)]
        middle = (low + high) / 2
        low, high = (middle, high) if _total(wishes, lines, middle) < n_target else (low, middle)
    return high


def _total(wishes: Iterable[float], lines: Iterable[Callable[[float], float]], shift: float) -> float:
    return sum([line(wish + shift) for wish, line in zip(wishes, lines, strict=True)])


def _saved(allocation: Allocation, levels: Mapping[str, Levels]) -> int:
    return sum(levels[name].saved_at(level) for name, level in allocation.items())


def _raise_in_place(allocation: Allocation, order: Sequence[str], levels: Mapping[str, Levels], n_target: int) -> None:
    """Raises one unit after the other by a step, from the first again after the last, until the target is met."""
    missing = n_target - _saved(allocation, levels)
    while missing > 0:
        for name in order:
            if missing > 0 and allocation[name] < levels[name].highest:
                before, allocation[name] = allocation[name], levels[name].next(allocation[name])
                missing -= levels[name].saved_at(allocation[name]) - levels[name].saved_at(before)


def _give_back_in_place(allocation: Allocation, order: Sequence[str], levels: Mapping[str, Levels], n_target: int) -> None:
    """Gives back steps that are not needed, the largest first, of equal ones the first in the order."""
    surplus = _saved(allocation, levels) - n_target
    while surplus > 0:
        steps = {name: _last_step(allocation[name], levels[name]) for name in order if allocation[name] > 0}
        largest = max((name for name in steps if steps[name] <= surplus), key=steps.__getitem__, default=None)
        if largest is None:
            return
        allocation[largest] = levels[largest].previous(allocation[largest])
        surplus -= steps[largest]


def _last_step(level: int, levels: Levels) -> int:
    """What a level above 0 saves more than the one below."""
    return levels.saved_at(level) - levels.saved_at(levels.previous(level))
