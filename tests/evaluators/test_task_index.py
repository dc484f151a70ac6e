import pytest
from hydra.core.global_hydra import GlobalHydra
from lm_eval.tasks import TaskManager

from selfprune.__main__ import run
from selfprune.evaluators.task_index import index_named
from selfprune.evaluators.task_loading import TASK_FOLDER, _members

NAMED = {
    "a task": ["gsm8k"],
    "a tag and tasks of several folders": ["ai2_arc", "boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "openbookqa"],
    "groups of one folder and of several": ["mmlu", "openllm"],
    "groups of groups and an old one": ["leaderboard", "pythia"],
}


@pytest.fixture(scope="module")
def everything():
    return TaskManager(include_path=str(TASK_FOLDER))


def tree(manager, name):
    """A name's file with all that it names in turn."""
    entry = manager.task_index.get(name)
    if entry is None:
        return name
    return name, entry.yaml_path, {member: tree(manager, member) for member in _members(entry.cfg or {}, entry.tags)}


@pytest.mark.parametrize("names", NAMED.values(), ids=NAMED)
def test_what_is_named_is_indexed_as_in_the_index_of_all(names, everything):
    found = index_named(names, [])
    assert [tree(found, name) for name in names] == [tree(everything, name) for name in names]
    assert len(found.all_tasks) < len(everything.all_tasks) / 10


def test_an_unknown_name_is_left_out():
    assert "gsm8kk" not in index_named(["gsm8kk"], []).all_tasks


def test_a_run_tells_an_unknown_task_with_the_ten_nearest(everything, monkeypatch, capsys, tmp_path):
    def index(include_path, include_defaults=True):
        """All are indexed already, which takes ten seconds."""
        return everything if include_defaults else TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", index)
    assert run(["harness.tasks=[selfprune_sum_report]"]) == 2
    GlobalHydra.instance().clear()
    captured = capsys.readouterr()
    said = " ".join(captured.err.split())
    assert said.startswith("selfprune: ")
    assert said.count("selfprune: ") == 1
    assert "got 'selfprune_sum_report'" in said
    nearest = said.partition("nearest first: ")[2].partition(";")[0].split(", ")
    assert (len(nearest), nearest[0]) == (10, "selfprune_sums_report")
    assert (captured.out, list(tmp_path.iterdir())) == ("", [])
