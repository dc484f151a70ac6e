import pytest

from selfprune.allocations.candidate import FINAL, RE_ENTRY, Candidate, Proposal, State, best, past_incumbents


def candidate(id_, score, state=State.COMPLETE, n_windows=8, level=None):
    level = id_ + 1 if level is None else level
    return Candidate(id_, "main", Proposal({"a": level}, "someone"), state, score, n_windows)


def test_the_best_come_first_and_ties_go_to_the_older():
    candidates = [candidate(0, 3.0), candidate(2, 1.0), candidate(1, 1.0), candidate(3, 2.0)]
    assert [c.id for c in best(candidates, 3)] == [1, 2, 3]
    assert [c.id for c in best(candidates)] == [1]


def test_whoever_went_further_up_the_ladder_comes_first_whatever_the_scores():
    candidates = [candidate(0, 1.0, n_windows=8), candidate(1, 9.0, n_windows=64), candidate(2, 8.0, n_windows=64)]
    assert [c.id for c in best([*candidates, candidate(3, 0.1, State.STOPPED, 64)], 4)] == [2, 1, 0]


def test_an_allocation_that_was_scored_again_is_listed_once_where_it_went_furthest():
    candidates = [candidate(0, 1.0, level=5), candidate(1, 2.0, level=6), candidate(2, 3.0, n_windows=64, level=5)]
    assert [c.id for c in best(candidates, 3)] == [2, 1]


def test_a_champion_that_runs_again_is_told_from_new_candidates():
    operators = {operator: Candidate(0, "main", Proposal({"a": 1}, "x", operator), State.COMPLETE) for operator in
                 (RE_ENTRY, FINAL, "swap", "")}  # fmt: skip
    assert [operator for operator, one in operators.items() if one.is_champion_again] == [RE_ENTRY, FINAL]


def test_only_complete_candidates_are_best():
    stopped, failed = candidate(0, 0.1, State.STOPPED), candidate(1, None, State.FAILED)
    assert [c.id for c in best([stopped, failed, candidate(2, 9.0)], 3)] == [2]
    assert best([stopped, failed], 3) == []


def test_a_failed_proposal_has_no_allocation_to_give():
    failed = Candidate(0, "main", Proposal(None, "someone", failure="no JSON"), State.FAILED)
    with pytest.raises(AssertionError):
        _ = failed.allocation
    assert candidate(0, 1.0).allocation == {"a": 1}


def test_a_champion_that_breaks_on_further_windows_gives_its_place_back():
    def champion(index, level, state=State.COMPLETE, operator="", gain=None):
        return Candidate(index, "main", Proposal({"a": level}, "p", operator), state, gain=gain)

    first, second = champion(0, 10, gain=0.0), champion(1, 20, gain=1.0)
    assert past_incumbents([], [first, champion(2, 30)]) == [first]
    assert past_incumbents([first], [second, champion(2, 10, operator=RE_ENTRY)]) == [first, second]
    assert past_incumbents([first, second], [champion(2, 30), champion(3, 20, State.FAILED, RE_ENTRY)]) == [first]
    third = champion(4, 40, gain=0.0)
    assert past_incumbents([first, second], [third, champion(5, 20, State.FAILED, RE_ENTRY)]) == [first, third]
