"""What a log file tells of a run: there is no terminal, and no test waits."""

import contextlib
import io
import re

import pytest

from selfprune.runs.showing.display import Display


@pytest.fixture
def told(monkeypatch):
    """A display without a terminal, a clock to be set, and its lines without their times."""
    monkeypatch.delenv("SELFPRUNE_LOG", raising=False)
    stream, seconds = io.StringIO(), [0.0]

    def lines():
        found = stream.getvalue().splitlines()
        assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in found)
        return [line[9:] for line in found]

    return Display(stream, lambda: seconds[0]), seconds, lines


def test_without_a_terminal_a_stage_tells_its_begin_every_30_seconds_and_its_end(told):
    display, seconds, lines = told
    with display.stage("search: main", total=600) as update:
        assert lines() == ["search: main"]
        for second in range(1, 100):
            seconds[0] = float(second)
            update(2 * second, f"best {1 / second:.3f}")
    assert lines() == [
        "search: main",
        "search: main: 10%, best 0.033, 30 s so far, about 4 min 30 s left",
        "search: main: 20%, best 0.017, 1 min 0 s so far, about 4 min 0 s left",
        "search: main: 30%, best 0.011, 1 min 30 s so far, about 3 min 30 s left",
        "search: main: done in 1 min 39 s, best 0.010",
    ]


def test_a_stage_of_unknown_length_tells_no_share_and_none_that_failed_is_done(told):
    display, seconds, lines = told
    with contextlib.suppress(ZeroDivisionError), display.stage("calibrating") as update:
        seconds[0] = 45.0
        update(3)
        raise ZeroDivisionError
    assert lines() == ["calibrating", "calibrating: 45 s so far"]


def test_several_lines_are_told_as_such(told):
    display, _, lines = told
    display.say("Sparsity: 50%\nModel: [out]")
    assert lines() == ["Sparsity: 50%", "Model: [out]"]


@pytest.mark.parametrize("level", ["WARNING", "error"])
def test_a_higher_log_level_leaves_warnings_alone(level, monkeypatch, capsys):
    monkeypatch.setenv("SELFPRUNE_LOG", level)
    stream = io.StringIO()
    display = Display(stream)
    display.say("a line")
    with display.stage("a stage") as update:
        update(1)
    assert stream.getvalue() == ""
    display.warn("the model is constant")
    assert capsys.readouterr().err == "selfprune: warning: the model is constant\n"
