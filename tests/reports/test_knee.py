"""Where the curve of damage turns: against curves whose turn is known."""

import math

import numpy as np
import pytest

from selfprune.reports.insight.edge import Point
from selfprune.reports.insight.knee import find_knee, knee_sentence


def points(curve, at, noise=0.0, n_windows=64):
    generator = np.random.default_rng(1)
    return [Point(s, list(curve(s) + noise * generator.standard_normal(n_windows)), 3.0, None, {}) for s in at]


@pytest.mark.parametrize("knee", [0.45, 0.6, 0.75])
def test_two_lines_meet_where_they_do(knee):
    found = find_knee(points(lambda s: 0.01 + 0.1 * s + 2 * max(s - knee, 0), [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]))
    assert found.sparsity == pytest.approx(knee, abs=0.01)
    assert found.low == pytest.approx(found.high, abs=1e-9), "windows that agree leave no doubt"


def test_windows_that_differ_widen_the_interval_which_holds_the_knee():
    def curve(s):
        return 0.1 * s + 2 * max(s - 0.6, 0)

    exact, loose = (find_knee(points(curve, np.linspace(0.3, 0.9, 7), noise)) for noise in (0.02, 0.2))
    for found in (exact, loose):
        assert found.low < 0.6 < found.high
    assert loose.high - loose.low > 3 * (exact.high - exact.low)


def test_a_curve_that_bends_has_its_knee_where_it_rises():
    found = find_knee(points(lambda s: math.exp(12 * (s - 0.9)), np.linspace(0.3, 0.9, 7)))
    assert 0.65 < found.sparsity < 0.85


@pytest.mark.parametrize(
    "given",
    [
        points(lambda s: s**2, [0.3, 0.5, 0.7, 0.9]),
        points(lambda s: math.sqrt(s), [0.3, 0.5, 0.6, 0.7, 0.9]),
        points(lambda s: math.inf if s > 0.8 else s, [0.3, 0.5, 0.6, 0.7, 0.9]),
    ],
    ids=["few", "flattening", "broken"],
)
def test_without_a_turn_there_is_no_knee(given):
    assert find_knee(given) is None


def test_it_is_said_in_words():
    found = find_knee(points(lambda s: max(s - 0.6, 0), [0.3, 0.5, 0.6, 0.7, 0.9]))
    assert knee_sentence(found).startswith("The curve of the KL turns steep at 60.0% (95% interval 60.0% to 60.0%)")
