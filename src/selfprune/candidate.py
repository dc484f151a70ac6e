"""Proposals, and the candidates that become of them."""

from dataclasses import dataclass
from enum import Enum

from selfprune.allocation import Allocation


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
    """

    allocation: Allocation | None
    proposer: str
    operator: str = ""
    parents: tuple[int, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Candidate:
    """A proposal with its fate; one line of the archive.

    Attributes:
        id: position in the archive.
        search: which search it belongs to; only `main` can give the winner.
        proposal: what was scored.
        state: how it ended.
        score: mean score over the windows it saw, lower is better; None when FAILED.
        n_windows: search windows that `score` rests on.
        n_tokens: tokens that were spent on it.
        reason: why it was STOPPED or FAILED.
    """

    id: int
    search: str
    proposal: Proposal
    state: State
    score: float | None = None
    n_windows: int = 0
    n_tokens: int = 0
    reason: str = ""

    @property
    def allocation(self) -> Allocation:
        """The allocation of a candidate that has one."""
        assert self.proposal.allocation is not None
        return self.proposal.allocation


def best(candidates: list[Candidate], n: int = 1) -> list[Candidate]:
    """The `n` best COMPLETE candidates, best first; ties go to the older."""
    complete = [c for c in candidates if c.state is State.COMPLETE and c.score is not None]
    return sorted(complete, key=lambda c: (c.score, c.id))[:n]
