import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from selfprune.errors import ConfigError, SelfpruneError
from selfprune.storage.journal import Journal

Anything = dict[str, Any]
FULL = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def refuse():
    raise AssertionError("the work must not be repeated")


def record(path, n):
    journal = Journal(path)
    return [journal.once({"step": i}, lambda i=i: {"score": i / 7}, Anything) for i in range(n)]


def test_recorded_work_is_recalled_and_not_repeated(tmp_path):
    path = tmp_path / "journal.jsonl"
    made = record(path, 3)
    journal = Journal(path)
    assert [journal.once({"step": i}, refuse, Anything) for i in range(3)] == made == [{"score": i / 7} for i in range(3)]
    assert journal.n_recalled == 3


def test_a_journal_without_a_record_is_no_file(tmp_path):
    Journal(tmp_path / "journal.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_work_goes_on_where_the_records_end(tmp_path):
    path, whole = tmp_path / "journal.jsonl", tmp_path / "whole.jsonl"
    record(path, 2)
    record(path, 5)
    record(whole, 5)
    assert path.read_bytes() == whole.read_bytes()


def test_only_what_was_read_back_counts_as_recalled(tmp_path):
    record(tmp_path / "journal.jsonl", 2)
    journal = Journal(tmp_path / "journal.jsonl")
    for i in range(4):
        journal.once({"step": i}, dict, Anything)
    assert journal.n_recalled == 2


def test_made_and_recalled_records_are_the_same_values(tmp_path):
    def make():
        return {"pair": (1, 2), "of_block": {0: 0.1}, "scores": [math.inf, 1e-300]}

    made = Journal(tmp_path / "journal.jsonl").once({"levels": (3, 4)}, make, Anything)
    assert made == Journal(tmp_path / "journal.jsonl").once({"levels": (3, 4)}, refuse, Anything)
    assert made == {"pair": [1, 2], "of_block": {"0": 0.1}, "scores": [math.inf, 1e-300]}


@pytest.mark.parametrize("n_cut", [1, 7, 17])
def test_a_line_that_was_cut_short_is_made_again(tmp_path, caplog, n_cut):
    path = tmp_path / "journal.jsonl"
    record(path, 3)
    content = path.read_bytes()
    path.write_bytes(content[:-n_cut])
    with caplog.at_level(logging.WARNING):
        journal = Journal(path)
    assert "cut short" in caplog.text
    assert [journal.once({"step": i}, refuse, Anything) for i in range(2)] == [{"score": 0}, {"score": 1 / 7}]
    journal.once({"step": 2}, lambda: {"score": 2 / 7}, Anything)
    assert path.read_bytes() == content


def test_every_record_is_on_disk_before_the_next_is_made(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for i in range(3):
        journal.once({"step": i}, lambda i=i: {"n_lines": len(path.read_text().splitlines()) if i else 0}, Anything)
    assert [json.loads(line)["n_lines"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_work_that_fails_leaves_no_record(tmp_path):
    path = tmp_path / "journal.jsonl"
    record(path, 1)
    journal = Journal(path)
    journal.once({"step": 0}, refuse, Anything)
    with pytest.raises(ZeroDivisionError):
        journal.once({"step": 1}, lambda: {"score": 1 / 0}, Anything)
    assert [line["step"] for line in map(json.loads, path.read_text().splitlines())] == [0]


def test_a_record_of_other_work_stops_the_run_and_says_where(tmp_path):
    path = tmp_path / "journal.jsonl"
    record(path, 2)
    journal = Journal(path)
    journal.once({"step": 0}, refuse, Anything)
    with pytest.raises(ConfigError, match=r"line 2, .* record 'step' as 5, but records 1; .* start a new run folder"):
        journal.once({"step": 5}, refuse, Anything)


def test_a_long_key_is_shown_in_brief(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).once({"allocation": {f"unit{i}": i for i in range(1000)}}, dict, Anything)
    with pytest.raises(ConfigError) as caught:
        Journal(path).once({"allocation": {}}, refuse, Anything)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"step": 0}\nnot JSON\n')
    with pytest.raises(ConfigError, match="cannot be read back"):
        Journal(path)
    assert path.read_text() == '{"step": 0}\nnot JSON\n'


@needs_full_disk
def test_a_full_disk_ends_the_run_in_one_paragraph(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    path.symlink_to(FULL)
    with pytest.raises(SelfpruneError, match=r"journal.jsonl could not be written: the disk is full\. .*resume="):
        journal.once({"step": 0}, dict, Anything)


def test_a_journal_in_no_folder_is_told_in_one_paragraph(tmp_path):
    with pytest.raises(SelfpruneError, match=r"could not be written: .*irectory"):
        Journal(tmp_path / "missing" / "journal.jsonl").once({}, dict, Anything)
