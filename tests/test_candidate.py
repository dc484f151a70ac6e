import pytest

from selfprune.candidate import Candidate, Proposal, State, best

PROPOSAL = Proposal({"a": 1}, "someone")


def candidate(id_, score, state=State.COMPLETE):
    return Candidate(id_, "main", PROPOSAL, state, score)


def test_the_best_come_first_and_ties_go_to_the_older():
    candidates = [candidate(0, 3.0), candidate(2, 1.0), candidate(1, 1.0), candidate(3, 2.0)]
    assert [c.id for c in best(candidates, 3)] == [1, 2, 3]
    assert [c.id for c in best(candidates)] == [1]


def test_only_complete_candidates_are_best():
    stopped, failed = candidate(0, 0.1, State.STOPPED), candidate(1, None, State.FAILED)
    assert [c.id for c in best([stopped, failed, candidate(2, 9.0)], 3)] == [2]
    assert best([stopped, failed], 3) == []


def test_a_failed_proposal_has_no_allocation_to_give():
    failed = Candidate(0, "main", Proposal(None, "someone", failure="no JSON"), State.FAILED)
    with pytest.raises(AssertionError):
        _ = failed.allocation
    assert candidate(0, 1.0).allocation == {"a": 1}
