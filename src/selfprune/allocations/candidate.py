"""Proposals, and the candidates that become of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from selfprune.allocations.unit import Allocation

RE_ENTRY = "re-entry"
"""Operator of the incumbent that is scored on the windows of a new race."""
FINAL = "final"
"""Operator of a champion that is scored on all windows at the end of a search."""


class State(str, Enum):
    """How a candidate ended."""

    COMPLETE = "COMPLETE"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Proposal:
    """An allocation that a proposer wants scored, or its failure to make one.

    Attributes:
        allocation: unit name -> level, on the budget; None when no allocation came of it.
        proposer: who made it.
        operator: how it was made, such as `swap` or `crossover`.
        parents: ids of the candidates it was made from.
        failure: why there is no allocation.
        proposal_tokens: tokens that were spent to make it, such as those of gradients; the first carries what several share.
        reply: the call in the record of the language model, and the place of the reply in it that it was read from.
        repair: what had to be mended in the reply, so that it could be read.
    """

    allocation: Allocation | None
    proposer: str
    operator: str = ""
    parents: tuple[int, ...] = ()
    failure: str = ""
    proposal_tokens: int = 0
    reply: tuple[int, int] | None = None
    repair: str = ""


@dataclass(frozen=True)
class Candidate:
    """A proposal with its fate; one line of the archive.

    Attributes:
        id: position in the archive.
        search: which search it belongs to; only `main` can give the winner.
        proposal: what was scored.
        state: how it ended.
        score: mean score over the windows of its last rung, lower is better; None when FAILED. Only scores of one rung compare.
        n_windows: search windows that `score` rests on.
        n_tokens: tokens that were spent on it, those of its proposal included.
        gain: by how much it beat the incumbent, on the same windows, when it took its place; None when it did not.
        reason: why it was STOPPED or FAILED.
        objectives: when COMPLETE and judged by several things, name -> value: the mean score of every kind of window, of which
            `score` is the mean over windows, and seconds where the budget is a latency.
    """

    id: int
    search: str
    proposal: Proposal
    state: State
    score: float | None = None
    n_windows: int = 0
    n_tokens: int = 0
    gain: float | None = None
    reason: str = ""
    objectives: dict[str, float] = field(default_factory=dict)

    @property
    def is_champion_again(self) -> bool:
        """Whether it is an older champion, scored on further windows."""
        return self.proposal.operator in (RE_ENTRY, FINAL)

    @property
    def allocation(self) -> Allocation:
        """The allocation of a candidate that has one."""
        assert self.proposal.allocation is not None
        return self.proposal.allocation


def past_incumbents(champions: Iterable[Candidate], told: Iterable[Candidate]) -> list[Candidate]:
    """The champions of a search after a round, the incumbent last; those that broke on further windows are none any more.

    Args:
        champions: those before the round.
        told: the fates of the round.
    """
    told = list(told)
    broken = [c.allocation for c in told if c.proposal.operator == RE_ENTRY and c.state is State.FAILED]
    return [*(c for c in champions if c.allocation not in broken), *(c for c in told if c.gain is not None)]


def best(candidates: list[Candidate], n: int = 1) -> list[Candidate]:
    """The `n` best COMPLETE candidates, best first, every allocation once: those furthest up the ladder; ties go to the older."""
    complete = [c for c in candidates if c.state is State.COMPLETE and c.score is not None]
    return distinct(sorted(complete, key=lambda c: (-c.n_windows, c.score, c.id)))[:n]


def distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates without those whose allocation an earlier one has."""
    first: dict[tuple[tuple[str, int], ...], Candidate] = {}
    for candidate in candidates:
        first.setdefault(tuple(sorted(candidate.allocation.items())), candidate)
    return list(first.values())
