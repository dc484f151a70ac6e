"""Where a run stands, by files that are known, whole or cut short."""

import json
import os

import pytest
import yaml

from selfprune.runs.sweeps.watching import SILENT, Progress, standing, watch

NAME = "selfprune watch"


def line(search, n_tokens, score, gain=None, proposer="random"):
    return json.dumps(
        {"search": search, "n_tokens": n_tokens, "score": score, "n_windows": 8, "gain": gain, "proposer": proposer}
    )


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"search": {"max_tokens": 1000}, "controls": {"random": {}}}))
    return folder


def test_a_run_is_told_from_its_first_file_to_its_last(run):
    assert standing(run).stage == "calibrating"
    assert list(standing(run).searches) == ["main", "random"]
    lines = [line("main", 100, 0.9, 0.0, "uniform"), line("main", 200, 0.5, 0.4, "gradient"), line("main", 50, 0.7)]
    (run / "archive.jsonl").write_text("\n".join(lines) + '\n{"search": "ma')
    now = standing(run)
    assert now.stage == "searching: main, or what follows it"
    assert now.searches == {"main": Progress(3, 350, (0.5, 8), "gradient"), "random": Progress()}
    (run / "archive.jsonl").write_text("\n".join([*lines, line("random", 70, 0.8, 0.1)]) + "\n")
    assert standing(run).stage == "searching: random, or what follows it"
    (run / "report.json").write_text("{}")
    assert standing(run).is_finished


def test_the_table_is_printed_and_a_run_that_is_silent_is_said_to_be(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    (run / "archive.jsonl").write_text(line("main", 250, 0.5, 0.4, "gradient") + "\n")
    assert watch(NAME, [str(run)]) == 0
    out = capsys.readouterr().out
    assert [cell.strip() for cell in next(row for row in out.splitlines() if "main" in row).split("│")[1:-1]] == [
        "main", "1", "250", "25%", "0.5", "8", "gradient",
    ]  # fmt: skip
    assert "nothing was written" not in out
    for path in run.iterdir():
        os.utime(path, (1, 1))
    assert watch(NAME, [str(run), "--once"]) == 0
    assert "nothing was written for " in " ".join(capsys.readouterr().out.split())
    assert standing(run).seconds_silent > SILENT


def test_a_terminal_is_told_until_the_report_is_there(run, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    looks = []

    def wait(seconds):
        looks.append(seconds)
        (run / "report.json").write_text("{}")

    assert watch(NAME, [str(run)], wait) == 0
    assert len(looks) == 1


def test_wrong_arguments_are_told(tmp_path, capsys):
    for arguments, said in {
        (): "the following arguments are required: folder; write selfprune watch RUN [--once]",
        (str(tmp_path),): "is no run folder: it has no config.yaml",
    }.items():
        assert watch(NAME, arguments) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_files_that_were_damaged_are_told(run, capsys):
    (run / "archive.jsonl").write_text("no JSON\n")
    assert watch(NAME, [str(run)]) == 2
    assert "archive.jsonl" in capsys.readouterr().err
    for content, said in (("a: [", "is no YAML"), ("7", "holds no options")):
        (run / "config.yaml").write_text(content)
        assert watch(NAME, [str(run)]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
