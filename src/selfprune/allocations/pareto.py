"""Which candidates no other beats in every respect."""

from collections.abc import Sequence

from selfprune.allocations.candidate import Candidate, State, distinct


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """The indices of the points that no other dominates, rising.

    One point dominates another when it is nowhere higher and somewhere lower; equal points do not dominate each other.

    Args:
        points: finite values, lower is better; all of one length.
    """
    front: list[int] = []
    # In this order a point can be dominated by an earlier one only, and then by one of the front.
    for i in sorted(range(len(points)), key=lambda i: tuple(points[i])):
        if not any(_dominates(points[j], points[i]) for j in front):
            front.append(i)
    return sorted(front)


def comparable(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The COMPLETE candidates of the highest rung that have objectives, every allocation once, the oldest of its kind.

    Args:
        candidates: of one search.
    """
    complete = [c for c in candidates if c.state is State.COMPLETE and c.objectives]
    n_windows = max((c.n_windows for c in complete), default=0)
    # Windows that are drawn afresh may by chance lack a kind; who has not met it cannot be compared.
    highest = [c for c in complete if c.n_windows == n_windows]
    n_objectives = max((len(c.objectives) for c in highest), default=0)
    return distinct(c for c in highest if len(c.objectives) == n_objectives)


def nondominated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The comparable candidates that no other dominates, the lowest score first.

    Args:
        candidates: of one search.
    """
    field = comparable(candidates)
    front = [field[i] for i in pareto_front([list(c.objectives.values()) for c in field])]
    return sorted(front, key=lambda c: (c.score, c.id))


def _dominates(point: Sequence[float], other: Sequence[float]) -> bool:
    return list(point) != list(other) and all(a <= b for a, b in zip(point, other, strict=True))
