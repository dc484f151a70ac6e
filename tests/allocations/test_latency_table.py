import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_turn import in_turn

from selfprune.allocations.latency_table import LatencyTable
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError

UP, DOWN = Unit("layers.0.up", 0, "up", 100), Unit("layers.1.down", 1, "down", 100)


@pytest.fixture
def write(tmp_path):
    """Writes a table of these seconds and gives its path."""

    def call(**seconds):
        path = tmp_path / "table.json"
        path.write_text(json.dumps({"measured": {}, "seconds": seconds}))
        return path

    return call


def test_seconds_lie_on_straight_lines_and_stay_beyond_the_last_point(write):
    table = LatencyTable.read(write(up=[[0, 8.0], [0.5, 6.0], [0.75, 2.0]]))
    assert [table.seconds(UP, sparsity) for sparsity in (0, 0.25, 0.5, 0.625, 0.75, 1)] == [8, 7, 6, 4, 2, 2]


def test_a_sparser_unit_is_never_slower(write):
    table = LatencyTable.read(write(up=[[0, 4.0], [0.5, 9.0], [0.7, 4.5], [0.9, 1.0]]))
    assert [table.seconds(UP, sparsity) for sparsity in (0, 0.4, 0.7, 0.8, 0.9)] == pytest.approx([4, 4, 4, 2.5, 1])


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(1e-9, 1e3)), unique_by=lambda pair: pair[0]), st.data())
def test_seconds_never_rise_whatever_was_measured(tmp_path_factory, pairs, data):
    path = tmp_path_factory.mktemp("table") / "table.json"
    path.write_text(json.dumps({"seconds": {"up": [[0, 1.0], *sorted(pairs)]}}))
    table = LatencyTable.read(path)
    low, high = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    assert table.seconds(UP, low) >= table.seconds(UP, high) * (1 - 1e-12)


def test_a_unit_of_its_own_goes_before_its_kind(write):
    table = LatencyTable.read(write(**{"up": [[0, 2.0]], "down": [[0, 2.0]], "layers.1.down": [[0, 5.0]]}))
    table.check([UP, DOWN])
    assert [table.seconds(unit, 0) for unit in (UP, DOWN)] == [2, 5]


@pytest.mark.parametrize(
    "rows",
    [
        [], {}, 3, "ab", [[0, 1], 2], [[0, 1, 2]], [["0", 1]], [[0, None]], [[0, True]], [[0, 0]], [[0, -1]], [[0.1, 1]],
        [[0, 1], [0, 1]], [[0, 1], [0.5, 1], [0.4, 1]], [[0, 1], [1.1, 1]], [[0, float("inf")]], [[0, float("nan")]],
    ],
)  # fmt: skip
def test_an_entry_that_is_no_list_of_points_is_refused_by_name(rows, write):
    with pytest.raises(ConfigError, match=r"table\.json: up must be a list of \[sparsity, seconds\]"):
        LatencyTable.read(write(down=[[0, 1]], up=rows))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no table"),
        ("[]", r"it must be an object, got \[\]"),
        ("{}", "seconds is missing"),
        ('{"seconds": {}}', "names no unit"),
        ('{"seconds": [1]}', "seconds must be an object"),
        ('{"seconds": {"up": [[0, 1]]}, "measured": {"n_tokens": "8"}}', "n_tokens must be a whole number"),
        (None, "is no table"),
    ],
)
def test_a_file_that_is_no_table_is_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "table.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"(?s)budget\.latency_table=.*table\.json .*{message}.*selfprune\.latency"):
        LatencyTable.read(tmp_path / "table.json")


def test_a_table_of_other_units_is_refused(write):
    with pytest.raises(ConfigError, match="names 'pu', which is no kind and no unit of this model; its kinds, nearest first: up"):
        LatencyTable.read(write(up=[[0, 1]], down=[[0, 1]], pu=[[0, 1]])).check([UP, DOWN])
    with pytest.raises(ConfigError, match="every kind of unit, but down has none"):
        LatencyTable.read(write(up=[[0, 1]])).check([UP, DOWN])


HERE = {
    "machine": "A", "device": "cpu", "n_threads": 2, "torch": "2.13.0", "dtype": "float32", "n_tokens": 8,
    "shapes": {"up": [32.0, 16.0, 1.0, 8.0]},
}  # fmt: skip


def measured(**changes):
    about = {name: value for name, value in (HERE | changes).items() if value is not None}
    return LatencyTable({"up": ((0.0, 1.0),)}, about)


def test_a_table_of_this_machine_and_model_is_taken_without_a_word():
    assert (measured().contradiction(HERE), measured().doubts(HERE)) == ("", [])


@in_turn(
    ("changes", "said"),
    [
        ({"dtype": "bfloat16"}, "was measured with dtype=bfloat16, but this run has dtype=float32"),
        ({"machine": "B"}, r"was measured on B, but the run is for A; .* budget\.machine='B', else measure anew"),
        ({"n_tokens": 128}, "was measured with n_tokens=128, but this run has n_tokens=8"),
        (
            {"shapes": {"up": [64.0, 16.0, 1.0, 8.0]}},
            r"up of \[64.0, 16.0, 1.0, 8.0\] .* has it of \[32.0, 16.0,",
        ),
    ],
)
def test_a_table_of_another_machine_model_dtype_or_number_of_tokens_contradicts_the_run(changes, said):
    assert re.search(said, measured(**changes).contradiction(HERE))
    assert measured(**changes).contradiction({}) == ""


@in_turn(
    ("changes", "said"),
    [
        ({"torch": "2.11.0", "n_threads": 8}, "otherwise: torch 2.11.0 there and 2.13.0 here, n_threads 8 there and 2 here"),
        ({"shapes": None, "machine": None}, "does not say machine, shapes of its measurements"),
    ],
)
def test_a_table_of_other_circumstances_or_of_unknown_ones_is_doubtful(changes, said):
    (doubt,) = measured(**changes).doubts(HERE)
    assert said in doubt


def test_threads_do_not_matter_on_a_gpu():
    assert measured(device="GPU", n_threads=8).doubts(HERE | {"device": "GPU"}) == []
