"""How the cliff is walked: which runs are made, from which winner each begins, and what is written."""

import json
import math
from types import SimpleNamespace

import pytest

from selfprune.cliff import main
from selfprune.runs.cliff.walk import walk


def scripted(kl_of, asked):
    """Runs whose KL is known."""

    def search(sparsity, before):
        asked.append((sparsity, None if before is None else before.sparsity))
        rows = {name: {"perplexity": 3.0, "tasks": {}, "kl": kl_of(sparsity)} for name in ("dense", "winner")}
        return SimpleNamespace(sparsity=sparsity, rows=rows, window_kl=lambda: {"winner": [kl_of(sparsity)] * 4})

    return search


def test_few_runs_close_in_on_the_edge_each_from_the_winner_below_it():
    asked = []
    points = walk(scripted(lambda s: 1e-4 * math.exp(12 * s * s), asked), 0.3, 0.9, 0.05, 0.05)
    edge = math.sqrt(math.log(500) / 12)  # 0.7196
    safe = max(point.sparsity for point in points if point.kl <= 0.05)
    unsafe = min(point.sparsity for point in points if point.kl > 0.05)
    assert safe <= edge <= unsafe <= safe + 0.05
    assert len(asked) <= 7
    assert asked[:2] == [(0.3, None), (0.9, 0.3)]
    known = [0.3, 0.9]
    for sparsity, before in asked[2:]:
        assert before == max(each for each in known if each < sparsity)
        known.append(sparsity)


def test_where_a_task_decides_what_is_open_is_halved():
    asked = []

    def search(sparsity, before):
        asked.append(sparsity)
        worse = {"primary": "acc", "acc": 0.5 if sparsity > 0.62 else 0.9, "acc_stderr": 0.01}
        rows = {
            "dense": {"perplexity": 3.0, "tasks": {"t": {**worse, "acc": 0.9}}},
            "winner": {"perplexity": 3.0, "tasks": {"t": worse}},
        }
        return SimpleNamespace(sparsity=sparsity, rows=rows, window_kl=lambda: {"winner": [0.001] * 4})

    walk(search, 0.3, 0.9, 0.05, 0.05)
    assert asked == [0.3, 0.9, 0.6, 0.75, 0.675, 0.637]


@pytest.mark.parametrize(("kl", "n"), [(1.0, 1), (0.001, 2)])
def test_nothing_more_is_run_where_the_edge_lies_outside(kl, n):
    asked = []
    walk(scripted(lambda _: kl, asked), 0.3, 0.9, 0.05, 0.05)
    assert len(asked) == n


@pytest.mark.slow
def test_the_command_runs_and_writes_the_answer_and_given_again_it_repeats_nothing(
    tiny_model_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    options = ["+experiment=smoke", "model=local", f"model.path={tiny_model_folder('llama')}", "model.device=cpu"]
    options += ["data.n_tokens_per_window=32", "data.n_calibration=4", "search.max_tokens=1_500", "harness=none"]
    options += ["proposer=evolutionary", "~controls.random"]
    given = ["a cliff", "--max-kl", "0.0002", "--from", "0.2", "--to", "0.8", "--tolerance", "0.3", *options]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert said.startswith("Up to ")
    found = json.loads((tmp_path / "a cliff/cliff.json").read_text())
    sparsities = [point["sparsity"] for point in found["points"]]
    assert sparsities == sorted(sparsities)
    assert 0.2 < found["edge"]["sparsity"] < 0.8
    assert "KL of uniform" in (tmp_path / "a cliff/cliff.md").read_text()
    assert (tmp_path / "a cliff/cliff.png").stat().st_size > 5_000
    first, last = (
        json.loads((tmp_path / f"a cliff/at_{at:g}/report.json").read_text()) for at in (sparsities[0], sparsities[-1])
    )
    assert "below" in [row["name"] for row in last["rows"]]
    assert "below" not in [row["name"] for row in first["rows"]]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("archive.jsonl")}
    assert main(given) == 0
    assert capsys.readouterr().out == said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("archive.jsonl")} == times


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "the following arguments are required: folder"),
        (["x", "--from", "0.9", "--to", "0.3"], "--from and --to must be sparsities"),
        (["x", "--max-kl", "0"], "--max-kl must be above 0"),
        (["x", "--max-kl", "much"], "invalid float value: 'much'"),
        (["x", "--tolerance", "2"], "--tolerance must lie between 0 and 1"),
        (["x", "budget.sparsity=0.5"], "cliff chooses the sparsities and folders of its runs itself"),
    ],
)
def test_wrong_arguments_are_told_in_a_paragraph(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(given) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
