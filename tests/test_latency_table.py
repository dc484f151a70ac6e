import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfprune.allocation import Unit
from selfprune.errors import ConfigError
from selfprune.latency_table import LatencyTable

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
        ("{", "cannot be read"),
        ("[]", "got list"),
        ("{}", "got NoneType"),
        ('{"seconds": {}}', "got dict"),
        (None, "cannot be read"),
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
