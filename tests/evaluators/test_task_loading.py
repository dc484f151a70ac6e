"""Everything that can be wrong with a task of one's own is told in one paragraph, before a model answers anything."""

import json

import datasets
import pytest
from huggingface_hub import constants

from selfprune.errors import ConfigError, DataError, SelfpruneError
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.harness_config import HarnessConfig

TASK = """task: own
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/own.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: answer
generation_kwargs: {until: [" "], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
DOCUMENTS = [{"question": f"{i} + 1 =", "answer": f"{i + 1}"} for i in range(4)]
LETTERS = '{"question": "1", "answer": "ab"}\n{"question": "2", "answer": "c"}\n'
MISTAKES = {
    "a line that is no JSON": ("", "", '{"answer": "1"}\nnot so\n', r"'own' of .*own\.yaml .* line 2 of .*own\.jsonl is no JSON"),
    "a line that is no object": ("", "", '{"answer": "1"}\n5\n', r"line 2 of .*own\.jsonl is no JSON object"),
    "no documents": ("", "", "", r"own\.jsonl is empty; put one document a line into it"),
    "no file": ("own.jsonl", "far.jsonl", None, r"there is no file .*far\.jsonl; correct dataset_kwargs\.data_files"),
    "a misspelt field": ("{{question}}", "{{qestion}}", None, r"'own' of .*'qestion' is undefined \(see doc_to_text\)"),
    "a field that a document lacks": ("answer", "'{{answer[1]}}'", LETTERS, r"'own' .* with document 2: .*no element 1"),
    "a missing split": ("test_split: test", "test_split: tset", None, r"KeyError: 'tset' \(see test_split\)"),
    "an unknown kind": ("generate_until", "generate_untill", None, r"output_type 'generate_untill'.* \(see output_type\)"),
    "an unknown option": ("output_type", "otput_type", None, r"unexpected keyword argument 'otput_type'"),
    "a broken template": ("{{question}}", "{{question", None, r"'own' of .*TemplateSyntaxError"),
    "a missing function": ("answer", "!function own.nothing", None, r"'nothing'.* \(see doc_to_target\)"),
    "too many examples": ("task: own", "task: own\nfewshot_split: test\nnum_fewshot: 9", None, r"'own' .* with num_fewshot=9"),
    "no YAML": ("task: own", "task: own\n  - a: [", None, r"own\.yaml must be the YAML of an lm-eval task, but cannot be read"),
    "a missing include": ("task: own", "task: own\ninclude: far.yaml", None, r"own\.yaml must be the YAML .*far\.yaml"),
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Writes the task with a change, and its documents; returns the options of a harness with it."""

    def write(before="", after="", documents=None):
        (tmp_path / "own.yaml").write_text(TASK.replace(before, after).replace("FOLDER", str(tmp_path)))
        lines = "".join(f"{json.dumps(document)}\n" for document in DOCUMENTS) if documents is None else documents
        (tmp_path / "own.jsonl").write_text(lines)
        return HarnessConfig(["own"], [], include_path=str(tmp_path))

    return write


def test_the_task_without_a_mistake_is_accepted(write):
    assert [*Harness(write()).tasks] == ["own"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_paragraph_with_its_place(mistake, write):
    *change, message = MISTAKES[mistake]
    with pytest.raises(SelfpruneError, match=message) as caught:
        Harness(write(*change))
    assert "\n" not in str(caught.value)


def test_a_member_of_a_group_that_fails_is_named(write, tmp_path):
    config = write("{{question}}", "{{qestion}}")
    (tmp_path / "all.yaml").write_text("group: all\ntask: [selfprune_sums_report, own]\n")
    with pytest.raises(DataError, match=r"the lm-eval task 'own' of .*'qestion' is undefined"):
        Harness(HarnessConfig(["all"], [], include_path=config.include_path))
    (tmp_path / "all.yaml").write_text("group: all\ntask: [selfprune_sums_report, nobodys]\n")
    with pytest.raises(ConfigError, match=r"the lm-eval group 'all' \(.*all\.yaml\) names 'nobodys', which is no known task"):
        Harness(HarnessConfig(["all"], [], include_path=config.include_path))


def test_a_hub_that_does_not_answer_is_asked_once_and_not_waited_for(write, no_network, tmp_path):
    config = write("dataset_path: json\ndataset_kwargs: {data_files: {test: FOLDER/own.jsonl}}", "dataset_path: nobody/nothing")
    with pytest.raises(
        DataError, match=r"'own' must come from the Hugging Face hub or its cache, got .*run it once with a network"
    ):
        Harness(config)
    assert len(no_network) == 1
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_task_that_two_names_ask_in_different_ways_is_refused_and_in_one_way_asked_once(write, tmp_path):
    config = write()
    (tmp_path / "all.yaml").write_text("group: all\ntask: [own]\naggregate_metric_list: [{metric: exact_match}]\n")
    both = ["all", "own"]
    harness = Harness(HarnessConfig(both, [], include_path=config.include_path))
    assert harness._loaded["all"]["tasks"]["own"] is harness._loaded["own"]["tasks"]["own"]
    (tmp_path / "all.yaml").write_text("group: all\ntask: [{task: own, num_fewshot: 2}]\n")
    with pytest.raises(ConfigError, match=r"'own' of harness\.tasks .* asks the lm-eval task 'own' in another way"):
        Harness(HarnessConfig(both, [], include_path=config.include_path))
