"""The edge between what is safe and what is not, on curves that are known."""

import math

import pytest

from selfprune.reports.insight.edge import Edge, Point, crossing, edge_sentence, find_edge

LIMIT = 0.05


def point(sparsity, kl, spread=0.0, **worse):
    return Point(sparsity, [kl * (1 - spread), kl * (1 + spread)] * 8, 3.0, 2 * kl, worse)


def test_the_edge_is_where_a_line_through_the_logarithms_reaches_the_limit():
    # from 0.01 to 0.1 in 20 points: log 5 / log 10 of the way
    edge = find_edge([point(0.3, 0.001), point(0.5, 0.01), point(0.7, 0.1), point(0.9, 2.0)], LIMIT)
    assert edge.sparsity == pytest.approx(0.5 + 0.2 * math.log10(5))
    assert edge.low == pytest.approx(edge.high) == pytest.approx(edge.sparsity)
    assert not edge.is_open
    assert edge.reason == "the KL is 0.1"


def test_the_interval_widens_with_the_spread_over_windows_and_stays_between_the_points():
    exact, loose = (find_edge([point(0.5, 0.04, s), point(0.6, 0.06, s)], LIMIT) for s in (0.05, 0.5))
    assert loose.low < exact.low < exact.sparsity < exact.high < loose.high
    assert loose.low >= 0.5
    assert loose.high <= 0.6


def test_a_task_that_is_clearly_worse_makes_a_point_unsafe_and_the_edge_lies_in_the_middle():
    edge = find_edge([point(0.4, 0.001), point(0.6, 0.01, sums=3.1)], LIMIT)
    assert (edge.sparsity, edge.low, edge.high) == (0.5, 0.4, 0.6)
    assert edge.reason == "sums is worse by 3.1 standard errors"


def test_curves_that_are_all_safe_or_not_at_all_are_told_so():
    points = [point(0.3, 0.001), point(0.5, 0.01)]
    edge = find_edge(points, LIMIT)
    assert edge == Edge(0.5, 0.5, 1.0, True, "")
    assert "All points up to 50.0% are safe" in edge_sentence(edge, points, LIMIT)
    points = [point(0.3, 0.2)]
    assert "Already 30.0% is too much: the KL is 0.2" in edge_sentence(find_edge(points, LIMIT), points, LIMIT)


def test_a_model_that_breaks_ends_at_the_last_safe_point():
    assert crossing(0.5, 0.01, 0.7, math.inf, LIMIT) == 0.5
    assert not point(0.7, math.nan).is_safe(LIMIT)


def test_a_task_counts_by_the_standard_error_of_the_difference_and_by_its_direction():
    def row(value, error, **more):
        return {"perplexity": 3.0, "tasks": {"t": {"primary": "acc", "acc": value, "acc_stderr": error, **more}}}

    def worse(dense, pruned):
        return Point.of(0.5, {"dense": dense, "winner": pruned}, [0.01]).worse_tasks

    assert worse(row(0.9, 0.03), row(0.7, 0.04)) == {"t": pytest.approx(0.2 / 0.05)}
    assert worse(row(0.9, 0.03), row(0.81, 0.04)) == {}
    assert worse(row(2.0, 0.3, higher_is_better=False), row(4.0, 0.4, higher_is_better=False)) == {"t": pytest.approx(4.0)}
    assert worse(row(0.9, None), row(0.1, None)) == {}
