"""A run that was begun is extended: what was recorded stays byte for byte, and the search goes on with the same proposers."""

import json
import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM

from selfprune.allocations.archive import read_archive
from selfprune.configs.conf_path import conf_folder
from selfprune.configs.config import register_schemas
from selfprune.errors import ConfigError
from selfprune.models.units import list_units, weight_view
from selfprune.runs.composed_run import run_composed
from selfprune.runs.extension import asked_limits, extending_overrides, open_stages
from selfprune.search.search_config import SearchConfig
from selfprune.storage.journal import Journal

RECORDS = ("archive.jsonl", "evaluations.jsonl")


@pytest.fixture(scope="module")
def go(tiny_model_folder):
    """Runs or resumes with these overrides, in this process."""
    register_schemas()
    model = ["model=local", f"model.path={tiny_model_folder('llama')}", "model.device=cpu", "data.n_tokens_per_window=32"]
    small = ["data.n_calibration=4", "search.max_tokens=2_000", "harness=none", "harness.tasks=[]", "harness.search_tasks=[]"]
    search = ["budget.sparsity=0.5", "proposer=evolutionary", "search.n_per_round=3", "~yardsticks.owl"]

    def call(*overrides, pictures=False):
        given = list(overrides)
        if not any(override.startswith("resume=") for override in given):
            given = ["+experiment=smoke", *model, *small, *search, *given]
        with initialize_config_dir(str(conf_folder()), version_base="1.3"), pytest.MonkeyPatch.context() as patched:
            if not pictures:
                patched.setattr("selfprune.reports.report.draw", lambda *_: None)
            return run_composed(compose("config", overrides=given), given)

    return call


@pytest.fixture(scope="module")
def finished(go, tmp_path_factory):
    """A finished run, to be copied."""
    return go(f"run_folder={tmp_path_factory.mktemp('finished') / 'run'}")


@pytest.fixture(scope="module")
def extended(go, finished, tmp_path_factory):
    """The same, extended, to be copied."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("extended") / "run")
    go(f"resume={folder}", "search.max_tokens=6000")
    return folder


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def records(folder):
    return {name: (folder / name).read_bytes() for name in RECORDS}


def rows_of(folder):
    return {row["name"]: row for row in report_of(folder)["rows"]}


def spent(folder):
    tokens = {"main": 0, "random": 0}
    for candidate in read_archive(folder / "archive.jsonl"):
        tokens[candidate.search] += candidate.n_tokens
    return tokens


def broken_after(folder, target, n_lines):
    """A copy of a run as it was when so many lines were recorded, which a kill leaves."""
    shutil.copytree(folder, target)
    lines = (target / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    (target / "evaluations.jsonl").write_bytes(b"".join(lines[:n_lines]))
    candidates = (target / "archive.jsonl").read_bytes().splitlines(keepends=True)
    known = {(one["search"], one["candidate"]) for one in map(json.loads, lines[:n_lines]) if "candidate" in one}
    last = max((number for _, number in known), default=-1)
    (target / "archive.jsonl").write_bytes(b"".join(candidates[: last // 3 * 3]))
    for name in ("report.json", "report.md", "model"):
        path = target / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return target


def test_a_finished_run_goes_on_to_its_new_limit_and_keeps_every_record(finished, extended):
    for name, before in records(finished).items():
        assert (extended / name).read_bytes().startswith(before)
        assert len((extended / name).read_bytes()) > len(before)
    assert (extended / "config.yaml").read_bytes() == (finished / "config.yaml").read_bytes()
    first, now = spent(finished), spent(extended)
    assert first["main"] <= 2_000 < 4_000 < now["main"] <= 6_000
    # the control has the tokens of the main search, to within what no round could use
    assert now["main"] - 1_000 < now["random"] <= now["main"]
    report = report_of(extended)
    assert report["search"]["n_tokens"] == now["main"]
    assert rows_of(extended)["random"]["n_tokens"] == now["random"]
    assert report["environment"]["overrides"][-1] == "search.max_tokens=6000"
    assert "search.max_tokens=6000" in (extended / "report.md").read_text()
    candidates = read_archive(extended / "archive.jsonl")
    assert [c.id for c in candidates] == list(range(len(candidates)))


def test_only_rows_whose_allocation_changed_are_measured_again(finished, extended):
    measured = [json.loads(line)["row"] for line in (extended / "evaluations.jsonl").read_text().splitlines() if '"row"' in line]
    assert measured[:4] == ["dense", "uniform", "random", "winner"]
    assert set(measured[4:]) <= {"random", "winner"}
    assert measured[4:]
    for name in ("dense", "uniform"):
        assert rows_of(extended)[name]["kl"] == rows_of(finished)[name]["kl"]


def test_the_model_of_an_extended_run_is_its_winner(extended):
    model = AutoModelForCausalLM.from_pretrained(extended / "model", dtype=torch.float32)
    zeros = {unit.name: int((weight_view(model, unit) == 0).sum()) for unit in list_units(model)}
    winner = report_of(extended)["search"]["winner"]["id"]
    assert zeros == read_archive(extended / "archive.jsonl")[winner].allocation


@pytest.mark.parametrize("options", [[], ["search.max_tokens=6000"]], ids=["resumed", "given again"])
def test_an_extended_run_repeats_to_the_same_records(options, extended, go, tmp_path):
    shutil.copytree(extended, tmp_path / "run")
    go(f"resume={tmp_path / 'run'}", *options)
    assert records(tmp_path / "run") == records(extended)
    assert (tmp_path / "run/extensions.jsonl").read_text().count("\n") == 1


def test_an_extension_that_was_killed_goes_on_to_the_same_archive(finished, extended, go, tmp_path):
    n_first, n_all = (len((folder / "evaluations.jsonl").read_text().splitlines()) for folder in (finished, extended))
    broken = broken_after(extended, tmp_path / "run", max(n_first + 1, int(0.8 * n_all)))
    go(f"resume={broken}")
    assert (broken / "archive.jsonl").read_bytes() == (extended / "archive.jsonl").read_bytes()
    assert {name: row["kl"] for name, row in rows_of(broken).items()} == {
        name: row["kl"] for name, row in rows_of(extended).items()
    }


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_broken_run_is_extended_to_the_archive_of_one_that_had_finished(share, finished, extended, go, tmp_path):
    n_lines = int(share * len((finished / "evaluations.jsonl").read_text().splitlines()))
    broken = broken_after(finished, tmp_path / "run", n_lines)
    go(f"resume={broken}", "search.max_tokens=6000")
    assert (broken / "archive.jsonl").read_bytes() == (extended / "archive.jsonl").read_bytes()
    before = records(broken)
    go(f"resume={broken}")
    assert records(broken) == before


def test_a_run_is_extended_again_and_by_another_limit(extended, go, tmp_path):
    shutil.copytree(extended, tmp_path / "run")
    before = records(extended)
    go(f"resume={tmp_path / 'run'}", "search.max_tokens=7000", "search.max_seconds=null")
    assert all((tmp_path / "run" / name).read_bytes().startswith(content) for name, content in before.items())
    assert 6_000 < spent(tmp_path / "run")["main"] <= 7_000
    assert (tmp_path / "run/extensions.jsonl").read_text().count("\n") == 2


def test_an_extension_by_candidates_goes_on_to_their_number(go, tmp_path):
    folder = go(f"run_folder={tmp_path / 'run'}", "search.max_candidates=7", "search.max_tokens=6000", "~controls.random")
    n_first = sum(not c.is_champion_again for c in read_archive(folder / "archive.jsonl"))
    go(f"resume={folder}", "search.max_candidates=16")
    n_now = sum(not c.is_champion_again for c in read_archive(folder / "archive.jsonl"))
    assert (n_first, n_now) == (7, 16)


def test_a_model_that_was_deleted_is_made_again_with_its_report_and_pictures(finished, go, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    expected = {path.name: path.read_bytes() for path in (finished / "model").iterdir()}
    shutil.rmtree(folder / "model")
    (folder / "report.md").unlink()
    go(f"resume={folder}", pictures=True)
    assert {path.name: path.read_bytes() for path in (folder / "model").iterdir()} == expected
    (folder / "model/model.safetensors").unlink()
    go(f"resume={folder}")
    assert {path.name: path.read_bytes() for path in (folder / "model").iterdir()} == expected
    assert records(folder) == records(finished)
    assert all((folder / name).is_file() for name in ("report.md", "sparsity.png", "progress.png"))


@pytest.mark.parametrize(
    "option", ["seed=1", "pruner=magnitude", "+experiment=smoke", "search=evopress", "~controls.random", "run_folder=x",
               "search.n_per_round=2"],
)  # fmt: skip
def test_whatever_else_is_given_beside_resume_is_refused_by_name(option, finished, go):
    before = records(finished)
    with pytest.raises(ConfigError) as told:
        go(f"resume={finished}", option)
    assert str(told.value).startswith(f"{option} cannot be given beside resume=")
    assert "only search.max_tokens, search.max_candidates, search.max_seconds may be given, to raise them" in str(told.value)
    assert records(finished) == before


@pytest.mark.parametrize(
    ("asked", "reason"),
    [({"max_tokens": 99}, "is 100 and can only be raised, got 99"),
     ({"max_candidates": 5}, "is without a limit and can only be raised, got 5"),
     ({"max_tokens": 0}, "search.max_tokens must be at least 1, got 0")],
)  # fmt: skip
def test_a_limit_that_is_lowered_is_refused_and_not_recorded(asked, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        open_stages(tmp_path, SearchConfig(max_tokens=100), asked)
    assert list(tmp_path.iterdir()) == []


def test_stages_are_read_back_in_their_order(tmp_path):
    first = SearchConfig(max_tokens=100, max_candidates=7, max_seconds=9.0)
    open_stages(tmp_path, first, {"max_tokens": 200})
    open_stages(tmp_path, first, {"max_tokens": 200})
    open_stages(tmp_path, first, {"max_candidates": None, "max_seconds": 10.0})
    with (tmp_path / "extensions.jsonl").open("a") as file:
        file.write('{"max_tokens": 30')
    stages = open_stages(tmp_path, first, {})
    assert [(s.max_tokens, s.max_candidates, s.max_seconds) for s in stages] == [
        (100, 7, 9.0), (200, 7, 9.0), (200, None, 10.0),
    ]  # fmt: skip
    assert extending_overrides(stages) == [
        "search.max_tokens=200", "search.max_candidates=null", "search.max_seconds=10.0",
    ]  # fmt: skip
    assert extending_overrides(stages[:1]) == []


def test_a_record_of_the_extensions_that_is_none_is_told(tmp_path):
    (tmp_path / "extensions.jsonl").write_text('{"max_tokens": "many"}\n')
    with pytest.raises(ConfigError, match=r"extensions\.jsonl"):
        open_stages(tmp_path, SearchConfig(), {})


def test_what_is_not_recorded_ends_a_block_of_recalling(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    for step in range(2):
        journal.once({"step": step}, dict, dict)
    again, met = Journal(tmp_path / "journal.jsonl"), []
    for key in ({"step": 0}, {"other": 1}, {"step": 1}, {"step": 2}):
        with again.recalling():
            again.once(key, lambda: pytest.fail("nothing may be made"), dict)
            met.append(key)
    assert met == [{"step": 0}, {"step": 1}]
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 2


def test_nothing_is_asked_where_resume_stands_alone():
    assert asked_limits(None, ["resume=run"]) == {}
