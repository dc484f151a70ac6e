import pytest
from lm_eval.tasks import TaskManager

from selfprune.evaluators.task_index import index_named
from selfprune.evaluators.task_loading import _members

NAMED = {
    "a task": ["gsm8k"],
    "tasks of several folders": ["boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"],
    "a tag": ["ai2_arc"],
    "a group of one folder": ["mmlu"],
    "a group of several folders": ["openllm"],
    "groups of groups": ["leaderboard"],
    "an old group": ["pythia"],
}


@pytest.fixture(scope="module")
def everything():
    return TaskManager()


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
