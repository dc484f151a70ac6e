import json
from dataclasses import replace

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfprune.allocations.archive import Archive, from_record, read_archive, to_record
from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.errors import ConfigError

finite = st.floats(allow_nan=False, allow_infinity=False)
allocations = st.none() | st.dictionaries(st.text(), st.integers(0, 10**9), max_size=5)
proposals = st.builds(
    Proposal,
    allocations,
    st.text(),
    st.text(),
    st.lists(st.integers(0, 99), max_size=3).map(tuple),
    st.text(),
    st.integers(0, 10**9),
)
candidates = st.builds(
    Candidate,
    st.integers(0, 10**6),
    st.text(),
    proposals,
    st.sampled_from(State),
    st.none() | finite,
    st.integers(0, 99),
    st.integers(0, 10**9),
    st.none() | finite,
    st.text(),
    st.dictionaries(st.text(), finite, max_size=3),
)


def candidate(id_, score=1.5, search="main"):
    return Candidate(id_, search, Proposal({"a": id_, "b": 2}, "swap", "op", tuple(range(id_))), State.COMPLETE, score, 4, 64)


@given(candidates)
def test_a_candidate_survives_its_line(one):
    assert from_record(json.loads(json.dumps(to_record(one)))) == one


def test_an_archive_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "archive.jsonl"
    failed = Candidate(2, "random", Proposal(None, "model", failure="no JSON: ✗\u2028"), State.FAILED, reason="no JSON")
    written = [candidate(0), candidate(1, 0.1 + 0.2), failed]
    archive = Archive(path)
    archive.extend(written[:1])
    archive.extend(written[1:])
    assert read_archive(path) == archive.candidates == written


def test_pandas_reads_it_in_one_call(tmp_path):
    Archive(tmp_path / "archive.jsonl").extend([candidate(0), candidate(1)])
    table = pandas.read_json(tmp_path / "archive.jsonl", lines=True)
    columns = "allocation proposer operator parents failure proposal_tokens id search state score n_windows n_tokens gain reason"
    assert list(table.columns) == columns.split()
    assert table.score.tolist() == [1.5, 1.5]


def test_objectives_stand_in_a_line_only_where_there_are_several():
    assert "objectives" not in to_record(candidate(0))
    assert to_record(replace(candidate(0), objectives={"text": 1.0, "tasks": 2.0}))["objectives"] == {"text": 1.0, "tasks": 2.0}


def test_a_resumed_archive_checks_what_it_holds_and_goes_on(tmp_path):
    path, whole = tmp_path / "archive.jsonl", tmp_path / "whole.jsonl"
    Archive(path).extend([candidate(0), candidate(1)])
    Archive(path).extend([candidate(0), candidate(1), candidate(2)])
    Archive(whole).extend([candidate(0), candidate(1), candidate(2)])
    assert path.read_bytes() == whole.read_bytes()
    with pytest.raises(ConfigError, match=r"line 1, does not .* should record 'score' as 1.25, but records 1.5"):
        Archive(path).extend([candidate(0, 1.25)])


def test_ids_must_go_on_where_the_archive_ends(tmp_path):
    archive = Archive(tmp_path / "archive.jsonl")
    archive.extend([candidate(0)])
    with pytest.raises(AssertionError):
        archive.extend([candidate(2)])
    assert len(read_archive(tmp_path / "archive.jsonl")) == 1
