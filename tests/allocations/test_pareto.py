from hypothesis import given
from hypothesis import strategies as st

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.pareto import comparable, nondominated, pareto_front

# Few values, so that points are often equal in some or in all respects.
points = st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, 4)] * n), max_size=25))


def dominates(point, other):
    return all(a <= b for a, b in zip(point, other, strict=True)) and any(a < b for a, b in zip(point, other, strict=True))


@given(points)
def test_no_member_is_dominated_and_every_other_is_dominated_by_a_member(points):
    front = pareto_front(points)
    assert front == sorted(set(front))
    for i, point in enumerate(points):
        if i in front:
            assert not any(dominates(other, point) for other in points)
        else:
            assert any(dominates(points[j], point) for j in front)


@given(points, st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_the_least_of_any_weighted_sum_is_on_the_front(points, weights):
    sums = [sum(w * x for w, x in zip(weights, point, strict=False)) for point in points]
    front = pareto_front(points)
    assert {i for i, value in enumerate(sums) if value == min(sums)} <= set(front)


def test_equal_points_do_not_dominate_each_other():
    assert pareto_front([(1, 2), (1, 2), (2, 1), (2, 2)]) == [0, 1, 2]


def candidate(id_, objectives, level=None, n_windows=8, state=State.COMPLETE):
    allocation = {"q": id_ if level is None else level}
    score = sum(objectives.values()) / 2
    return Candidate(id_, "main", Proposal(allocation, "random"), state, score, n_windows, objectives=objectives)


def test_only_complete_candidates_of_the_highest_rung_compare_and_each_allocation_once():
    here = candidate(0, {"text": 3.0, "tasks": 1.0})
    there = candidate(1, {"text": 1.0, "tasks": 2.0})
    beaten = candidate(2, {"text": 3.0, "tasks": 2.0})
    lower = candidate(3, {"text": 0.1, "tasks": 0.1}, n_windows=4)
    again = candidate(4, {"text": 3.0, "tasks": 1.0}, level=0)
    lacking = candidate(5, {"text": 0.1})
    stopped = candidate(6, {"text": 0.1, "tasks": 0.1}, state=State.STOPPED)
    everyone = [here, there, beaten, lower, again, lacking, stopped]
    assert comparable(everyone) == [here, there, beaten]
    assert nondominated(everyone) == [there, here]


def test_without_objectives_there_is_no_front():
    assert comparable([candidate(0, {})]) == nondominated([candidate(0, {})]) == nondominated([]) == []
