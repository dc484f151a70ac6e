"""What is read back: every kind of record of a real run, of today and of an earlier version, and none that is something else."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from in_turn import in_turn
from typing_extensions import TypedDict

from selfprune.allocations.archive import CandidateLine, read_archive, to_record
from selfprune.allocations.candidate import Candidate, Proposal
from selfprune.allocations.report_file import read_report
from selfprune.allocations.winners import read_winner
from selfprune.errors import ConfigError, ModelError
from selfprune.language_models.calls import Call, read_calls
from selfprune.language_models.scripted import ScriptedLanguageModel
from selfprune.reports.report_table import table_cells
from selfprune.runs.contest import Answers
from selfprune.runs.rows.report_rows import Measured
from selfprune.search.loop import TimeLimit
from selfprune.search.scoring import Falls, WindowScores
from selfprune.storage.environment import read_environment
from selfprune.storage.journal import Journal, NothingElse
from selfprune.storage.recorded_files import Score, Seconds, checked, conforming, read_json, read_json_lines, read_text

EARLIER = Path(__file__).parents[1] / "fixtures" / "finished_run"
"""A finished run of the first version that had schemas to meet: 11 candidates of a tiny model, all kinds of records."""
KIND_OF = {
    "splits": (("splits",), NothingElse),
    "sensitivity": (("sensitivity",), WindowScores),
    "candidate": (("search", "candidate", "allocation", "batches"), WindowScores),
    "candidates": (("search", "candidates"), TimeLimit),
    "gradients": (("gradients", "bracket", "batches"), Falls),
    "row": (("row",), Measured),
}
"""What tells a journal's record -> its key and what stands beside it."""
NOT_SCORES = {
    "number": 5, "list": [], "null": None, "text": "x", "empty": {}, "scores of text": {"window_scores": "1 2", "seconds": 1.0},
    "null scores": {"window_scores": None, "seconds": 1.0}, "a score of text": {"window_scores": [1.0, "2"], "seconds": 1.0},
    "true as a score": {"window_scores": [True], "seconds": 1.0}, "huge": {"window_scores": [1e301], "seconds": 1.0},
    "no seconds": {"window_scores": [1.0]}, "negative seconds": {"window_scores": [1.0], "seconds": -1.0},
    "endless": {"window_scores": [1.0], "seconds": math.inf}, "unknown key": {"window_scores": [1.0], "seconds": 1.0, "more": 1},
}  # fmt: skip


class Scores(TypedDict):
    window_scores: list[Score]
    seconds: Seconds


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("value", NOT_SCORES.values(), ids=NOT_SCORES)
def test_json_that_is_not_what_was_written_is_refused_with_file_and_line(value, tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{{"window_scores": [1], "seconds": 0}}\n{json.dumps(value)}\n')
    before = path.read_bytes()
    with pytest.raises(ModelError, match=r"journal\.jsonl, line 2, cannot be read back: .*; do this$"):
        read_json_lines(path, Scores, "do this", ModelError)
    assert path.read_bytes() == before
    assert read_json_lines(path, Scores, "do this", n_lines=1) == [{"window_scores": [1.0], "seconds": 0.0}]


@in_turn("value", [math.inf, -math.inf, math.nan, 0.0, -1e300])
def test_measurements_of_a_broken_model_are_what_was_written(value):
    record = {"window_scores": [value], "seconds": 0.5}
    assert repr(conforming(json.loads(json.dumps(record)), Scores)) == repr(record)


def test_half_a_character_that_a_language_model_wrote_is_a_text():
    record = {"call": 0, "prompt": "\ud800", "model": "é", "replies": [], "seconds": 0.5}
    assert conforming(json.loads(json.dumps(record)), Call) == record


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe\xff", "no JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"\xef\xbb\xbf{}", "window_scores is missing"),
        (None, "No such file"),
        (..., "Is a directory"),
    ],
    ids=["empty", "cut", "bytes", "deep", "mark", "missing", "folder"],
)
def test_a_file_that_is_none_is_refused_in_one_paragraph(content, said, tmp_path):
    path = tmp_path / "file.json"
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"file\.json cannot be read back: .*{said}.*; do this") as caught:
        read_json(path, Scores, "do this")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_told(name, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read back"):
        read_json(tmp_path / name, Scores, "do this")


def test_text_that_is_not_utf8_is_refused_with_the_place(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"seed: \xe9\n")
    with pytest.raises(ConfigError, match="must be text in UTF-8, but byte 6 is none; do this"):
        read_text(tmp_path / "config.yaml", "do this")


def test_a_long_value_is_told_in_brief():
    with pytest.raises(ConfigError) as caught:
        checked({"window_scores": "x" * 10_000, "seconds": 1}, Scores, "here", "do this")
    assert len(str(caught.value)) < 300


def test_an_archive_line_has_the_keys_of_a_candidate():
    fields = {field.name for kind in (Candidate, Proposal) for field in dataclasses.fields(kind)} - {"proposal"}
    assert CandidateLine.__annotations__.keys() == fields


def test_the_records_of_an_earlier_version_meet_the_schemas_of_this_one(tmp_path):
    found = set()
    for record in lines_of(EARLIER / "evaluations.jsonl"):
        if "finalist" in record:
            continue
        first = next(name for name in reversed(KIND_OF) if name in record)
        key, kind = KIND_OF[first]
        journal = tmp_path / f"{len(found)}.jsonl"
        journal.write_text(json.dumps(record) + "\n")
        recalled = Journal(journal).once({name: record[name] for name in key}, lambda: 1 / 0, kind)
        assert recalled == {name: value for name, value in record.items() if name not in key}
        journal.unlink()
        found.add(first)
    assert found == set(KIND_OF)


def test_a_finalist_that_an_earlier_version_measured_is_refused_since_it_has_no_answers_to_single_documents(tmp_path):
    (record, *_) = [record for record in lines_of(EARLIER / "evaluations.jsonl") if "finalist" in record]
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(record) + "\n")
    key = {"finalist": record["finalist"], "documents": ["selfprune_sums_search"]}
    with pytest.raises(ConfigError, match=r"line 1, .* should record 'documents' as .* start a new run folder"):
        Journal(tmp_path / "evaluations.jsonl").once(key, lambda: 1 / 0, Answers)


def test_the_archive_report_and_calls_of_an_earlier_version_are_read():
    archive = read_archive(EARLIER / "archive.jsonl")
    assert json.loads(json.dumps([to_record(candidate) for candidate in archive])) == lines_of(EARLIER / "archive.jsonl")
    assert len(archive) == 11
    winner = read_report(EARLIER)["search"]["winner"]["id"]
    assert read_winner(EARLIER, "a run") == archive[winner].allocation
    calls = lines_of(EARLIER / "language_model_calls.jsonl")
    assert read_calls(EARLIER / "language_model_calls.jsonl", 99) == calls
    assert sum("options" in call for call in calls) == 2
    model = ScriptedLanguageModel(EARLIER / "language_model_calls.jsonl")
    assert len(model.complete(calls[0]["prompt"], {}, calls[0]["n"], 0)) == 2
    assert read_environment(EARLIER)["overrides"][0] == "+experiment=smoke"
    _, cells = table_cells(read_report(EARLIER))
    assert [row[0] for row in cells] == ["dense", "uniform", "owl", "winner"]
