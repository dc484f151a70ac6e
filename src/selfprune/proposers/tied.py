"""A proposer whose allocations are all made such that a checkpoint of them loads with stock transformers."""

from dataclasses import replace

from selfprune.allocations.candidate import Candidate, Proposal
from selfprune.proposers.base import Proposer, SearchSpace


class TiedProposals:
    """What another proposer says, put on the budget once more with tied units at one level.

    Args:
        inner: who proposes; it is told what became of the allocations as they were scored.
        space: whose target ties units.
    """

    def __init__(self, inner: Proposer, space: SearchSpace) -> None:
        self.name = inner.name
        self._inner, self._space = inner, space

    def ask(self, n: int) -> list[Proposal]:
        """At most `n` proposals."""
        return [self._tied(proposal) for proposal in self._inner.ask(n)]

    def tell(self, candidates: list[Candidate]) -> None:
        """Handed on."""
        self._inner.tell(candidates)

    def _tied(self, proposal: Proposal) -> Proposal:
        if proposal.allocation is None:
            return proposal
        return replace(proposal, allocation=self._space.project(self._space.grid.sparsities(proposal.allocation)))
