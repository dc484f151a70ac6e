import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_turn import in_turn

from selfprune.allocations.candidate import Proposal
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.objective import LATENCY, Objective, ObjectiveValues, interleave
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.search.ladder import Ladder
from selfprune.search.racing import Racer

shares = st.lists(st.integers(1, 60), min_size=1, max_size=4).map(
    lambda parts: {f"kind {i}": Fraction(part, sum(parts)) for i, part in enumerate(parts)}
)


@given(shares, st.integers(0, 150))
@settings(max_examples=60)
def test_every_prefix_holds_the_shares_to_less_than_one_window(shares, n):
    sequence = interleave(shares, n)
    assert len(sequence) == n
    slack = Fraction(1, 2 * len(shares) - 2) if len(shares) > 1 else 0
    for length in range(n + 1):
        for name, share in shares.items():
            assert abs(sequence[:length].count(name) - length * share) <= 1 - slack


@given(shares)
@settings(max_examples=30)
def test_a_prefix_is_exact_wherever_whole_windows_allow_it(shares):
    n = math.lcm(*(share.denominator for share in shares.values()))
    assert {name: interleave(shares, n).count(name) for name in shares} == {name: n * share for name, share in shares.items()}


def test_two_kinds_are_never_off_by_more_than_rounding():
    sequence = interleave({"a": Fraction(7, 10), "b": Fraction(3, 10)}, 40)
    assert all(abs(sequence[:n].count("a") - 0.7 * n) <= 0.5 + 1e-12 for n in range(41))


def test_shares_are_relative_and_read_as_they_are_written():
    assert Objective(2, 1, 1).shares() == {"text": Fraction(1, 2), "self_generated": Fraction(1, 4), "tasks": Fraction(1, 4)}
    assert Objective(0.9, 0, 0.1).shares() == {"text": Fraction(9, 10), "tasks": Fraction(1, 10)}


def test_the_default_is_the_text_alone():
    assert Objective().kinds(5) == ["text"] * 5
    assert Objective(0, 0, 0.2).kinds(3) == ["tasks"] * 3


@in_turn("share", [-0.1, math.nan, math.inf])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match=r"objective\.tasks must be a finite share of 0 or more, got"):
        Objective(tasks=share)


def test_shares_that_are_all_zero_are_refused():
    with pytest.raises(ConfigError, match=r"are all 0.*such as objective\.text=1"):
        Objective(0, 0, 0)


def test_a_share_of_tasks_needs_tasks():
    with pytest.raises(ConfigError, match=r"objective\.tasks=0\.5 .* but harness\.search_tasks is empty"):
        Objective(0.5, 0, 0.5).check(8, [])
    Objective(0.5, 0, 0.5).check(8, ["arc_easy"])
    Objective().check(8, [])


def test_a_share_without_a_whole_window_is_refused():
    with pytest.raises(ConfigError, match=r"objective\.self_generated is 0\.99% of 8 search windows, which is none"):
        Objective(1, 0.01).check(8, [])
    Objective(1, 0.01).check(101, [])


def test_aspects_are_the_means_of_each_kind():
    objective_values = ObjectiveValues(["text", "tasks", "text", "text"])
    assert objective_values.of({}, {0: 1.0, 1: 2.0, 3: 4.0}) == {"text": 2.5, "tasks": 2.0}
    assert objective_values.of({}, {2: 3.0}) == {"text": 3.0}


@given(st.lists(st.tuples(st.sampled_from(["text", "self_generated", "tasks"]), st.floats(0, 100)), min_size=3))
def test_the_score_is_the_mean_of_the_aspects_weighted_by_their_windows(windows):
    kinds = [kind for kind, _ in windows]
    means = ObjectiveValues(kinds).of({}, {i: score for i, (_, score) in enumerate(windows)})
    if len(set(kinds)) == 1:
        assert means == {}
    else:
        mean = sum(kinds.count(kind) * value for kind, value in means.items()) / len(kinds)
        assert mean == pytest.approx(sum(score for _, score in windows) / len(windows))


def test_seconds_are_an_aspect_of_their_own():
    objective_values = ObjectiveValues(["text", "text"], lambda allocation: 0.5 * allocation["q"])
    assert objective_values.of({"q": 3}, {0: 1.0, 1: 2.0}) == {"text": 1.5, LATENCY: 1.5}


def test_one_aspect_says_nothing_that_the_score_does_not():
    assert ObjectiveValues(["text"]).of({}, {0: 1.0}) == {}
    assert ObjectiveValues().of({}, {0: 1.0}) == {}


class Numbers:
    """Instead of a scorer: what a candidate scores on a window is known beforehand."""

    def __init__(self, scores):
        unit = Unit("q", 0, "q", n_items=len(scores))
        self.grid, self.last = LevelGrid.with_constant_step([unit], 1e-9), {"q": 0}
        self.scores, self.n_windows, self.n_tokens_per_window = scores, 4, 1

    def expect(self, work):
        pass

    def score(self, search, candidate, allocation, windows):
        return {window: self.scores[allocation["q"]][window] for window in windows}


def test_complete_candidates_of_a_race_carry_their_objectives_and_no_others_do():
    scores = [[1.0, 2.0, 3.0, 5.0], [1.0, 2.5, 3.5, 4.0], [9.0, 9.0, 0.0, 0.0], [math.nan] * 4]
    objective_values = ObjectiveValues(["text", "tasks", "text", "text"])
    proposals = [*(Proposal({"q": level}, "test") for level in range(4)), Proposal(None, "test", failure="nothing came")]
    ladder = Ladder([2, 4], [2], z_worse=math.inf, grows=False)
    candidates = Racer("main", Numbers(scores), ladder, 0, objective_values).race(0, proposals)
    assert [c.objectives for c in candidates] == [{"text": 3.0, "tasks": 2.0}, {"text": 8.5 / 3, "tasks": 2.5}, {}, {}, {}]
    assert [c.state.name for c in candidates] == ["COMPLETE", "COMPLETE", "STOPPED", "FAILED", "FAILED"]
    assert [c.objectives for c in Racer("main", Numbers(scores), ladder, 0).race(0, proposals)] == [{}] * 5
