import math

import pytest

from selfprune.search.sign_test import LEVEL, Rival, judge


def answers(*right, n=16):
    return {"task": [float(i in right) for i in range(n)]}


def binomial_tail(n_gained, n_lost):
    n = n_gained + n_lost
    return sum(math.comb(n, k) for k in range(n_gained, n + 1)) / 2**n


def test_two_right_answers_more_do_not_overturn_a_leader_with_none():
    verdict = judge([answers(), answers(0, 1)])
    assert verdict.chosen == 0
    assert verdict.rivals == [Rival(0, 0, 0, 1.0), Rival(2, 2, 0, 0.25)]
    assert verdict.n_documents == 16


def test_five_gains_without_a_loss_are_significant_for_one_rival_and_not_for_two():
    assert judge([answers(), answers(*range(5))]).rivals[1].p == 1 / 32 <= LEVEL
    assert judge([answers(), answers(*range(5))]).chosen == 1
    verdict = judge([answers(), answers(*range(5)), answers()])
    assert verdict.rivals[1].p == 2 / 32 > LEVEL
    assert verdict.chosen == 0


@pytest.mark.parametrize(("n_gained", "n_lost"), [(9, 2), (8, 2), (40, 25), (30, 30)])
def test_only_documents_that_differ_count_by_the_exact_binomial_tail(n_gained, n_lost):
    both, n = 100, 300
    leader = [*range(both), *range(both, both + n_lost)]
    rival = [*range(both), *range(both + n_lost, both + n_lost + n_gained)]
    found = judge([answers(*leader, n=n), answers(*rival, n=n)])
    assert (found.rivals[1].n_gained, found.rivals[1].n_lost) == (n_gained, n_lost)
    assert found.rivals[1].p == pytest.approx(binomial_tail(n_gained, n_lost), rel=1e-12)
    assert found.chosen == int(found.rivals[1].p <= LEVEL)


def test_the_documents_of_several_tasks_are_pooled_whatever_the_order_of_the_tasks():
    leader = {"a": [0.0] * 3, "b": [0.0] * 4}
    rival = {"b": [1.0] * 4, "a": [1.0, 1.0, 0.0]}
    verdict = judge([leader, rival])
    assert verdict.rivals[1] == Rival(6, 6, 0, 1 / 64)
    assert (verdict.chosen, verdict.n_documents) == (1, 7)


def test_of_several_that_are_better_the_one_with_the_most_right_answers_wins_then_the_one_with_the_best_score():
    eight, nine = answers(*range(8)), answers(*range(9))
    assert judge([answers(), eight, nine]).chosen == 2
    assert judge([answers(), eight, eight]).chosen == 1


def test_a_single_finalist_and_finalists_without_documents_need_no_test():
    assert judge([answers(1)]).chosen == 0
    assert judge([{}, {}]).chosen == 0
    assert judge([{}, {}]).rivals == [Rival(0, 0, 0, 1.0)] * 2
