import copy
import json
import math
import re
from collections import Counter

import pytest
import torch
from lm_eval.api.task import Task
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from selfprune.embedded.tasks import build_documents
from selfprune.errors import DataError
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.harness_config import HarnessConfig
from selfprune.evaluators.task_documents import answered_documents
from selfprune.evaluators.task_loading import load_tasks

TASKS = ["selfprune_sums_report", "selfprune_facts_report"]
OWN_DATA = """
from datasets import Dataset, DatasetDict

def load(**_):
    rows = [
        {"stem": "The _ barks.", "options": ["dog", "cat"], "right": 0, "name": "dog", "rest": "barks."},
        {"stem": "The _ mews.", "options": ["dog", "cat"], "right": 1, "name": "cat", "rest": "mews."},
        {"stem": "The _ sings.", "options": ["dog", "cat"], "right": -1, "name": "", "rest": "sings."},
    ]
    return DatasetDict({"test": Dataset.from_list(rows)})
"""
COMMON = "custom_dataset: !function own.load\ntest_split: test\nfewshot_delimiter: ' / '\n"
OWN_TASKS = {
    "choices": "output_type: multiple_choice\ndoc_to_text: stem\ndoc_to_choice: options\ndoc_to_target: right\n",
    "contexts": "output_type: multiple_choice\ndoc_to_text: right\ndoc_to_choice: ['A dog', 'A cat']\ndoc_to_target: rest\n",
    "written": "output_type: generate_until\ndoc_to_text: stem\ndoc_to_target: name\ntarget_delimiter: ' -> '\n",
    "last_word": "output_type: loglikelihood\ndoc_to_text: stem\ndoc_to_target: ' {{name}}'\n",
    "whole": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: stem\n",
}


@pytest.fixture
def models(make_tiny_model):
    """Two with different answers."""
    return [make_tiny_model("llama", seed=seed, max_position_embeddings=256) for seed in (0, 1)]


@pytest.fixture
def n_builds(monkeypatch):
    """Task -> how often its requests were built."""
    counts = Counter()
    build = Task.build_all_requests

    def counting(task, **settings):
        counts[task.config.task] += 1
        build(task, **settings)

    monkeypatch.setattr(Task, "build_all_requests", counting)
    return counts


def test_requests_are_built_once_whatever_the_number_of_models(models, tiny_tokenizer, n_builds):
    harness = Harness(HarnessConfig(TASKS, ["selfprune_sums_search"], limit=8, num_fewshot=1))
    for model in (*models, models[0]):
        harness.evaluate(model, tiny_tokenizer)
        harness.evaluate(model, tiny_tokenizer, ["selfprune_sums_search"])
    assert n_builds == dict.fromkeys([*TASKS, "selfprune_sums_search"], 1)


def test_results_are_those_of_requests_built_anew(models, tiny_tokenizer, n_builds):
    config = HarnessConfig(TASKS, [], limit=20, num_fewshot=2)
    harness = Harness(config)
    kept = [harness.evaluate(model, tiny_tokenizer) for model in (*models, models[0])]
    anew = [Harness(config).evaluate(model, tiny_tokenizer) for model in models]
    assert kept == [*anew, anew[0]]
    assert kept[0] != kept[1]
    assert n_builds[TASKS[0]] == 3


def test_the_answers_of_the_model_before_are_forgotten(models, tiny_tokenizer):
    harness = Harness(HarnessConfig(TASKS, [], limit=8))
    sound = harness.evaluate(models[0], tiny_tokenizer)
    with torch.no_grad():
        models[1].model.norm.weight.fill_(math.nan)
    assert math.isnan(harness.evaluate(models[1], tiny_tokenizer)[TASKS[0]]["acc"])
    assert harness.evaluate(models[0], tiny_tokenizer) == sound


def test_search_documents_have_their_right_answers_and_come_once_each_from_the_tasks_in_turn():
    harness = Harness(HarnessConfig(TASKS, ["selfprune_sums_search", "selfprune_facts_search"], limit=2, num_fewshot=3))
    found = list(harness.search_documents(seed=0))
    expected = {
        task: sorted(f"{d['query']} {d['choices'][d['gold']]}\n" for d in build_documents(task, "search"))
        for task in ("selfprune_sums", "selfprune_facts")
    }
    assert sorted(found[0::2]) == expected["selfprune_sums"]
    assert sorted(found[1::2]) == expected["selfprune_facts"]
    assert list(harness.search_documents(seed=0)) == found != list(harness.search_documents(seed=1))


@pytest.mark.parametrize(
    ("task", "documents"),
    [
        ("choices", ["The _ barks. dog / ", "The _ mews. cat / "]),
        ("contexts", ["A dog barks. / ", "A cat mews. / "]),
        ("written", ["The _ barks. -> dog / ", "The _ mews. -> cat / "]),
        ("last_word", ["The _ barks. dog / ", "The _ mews. cat / "]),
        ("whole", ["The _ barks. / ", "The _ mews. / ", "The _ sings. / "]),
    ],
)
def test_each_kind_of_task_shows_its_right_answer_where_there_is_one(task, documents, tmp_path):
    (tmp_path / "own.py").write_text(OWN_DATA)
    (tmp_path / "own.yaml").write_text(f"task: own\n{COMMON}{OWN_TASKS[task]}")
    own = load_tasks(["own"], str(tmp_path))["own"]["tasks"]["own"]
    assert sorted(answered_documents([own], 0)) == sorted(documents)


def test_a_task_keeps_its_own_number_of_examples_unless_told_otherwise(tmp_path):
    write_sums(tmp_path, "three", "num_fewshot: 3\nfewshot_split: test\n")
    write_sums(tmp_path, "none", "num_fewshot: 0\nfewshot_split: test\n")
    write_sums(tmp_path, "silent", "fewshot_split: test\n")
    for wanted, used in ((None, {"three": 3, "none": 0, "silent": 0}), (1, {"three": 1, "none": 0, "silent": 1})):
        harness = Harness(HarnessConfig([*used], [], limit=2, include_path=str(tmp_path), num_fewshot=wanted))
        for name, task in harness.tasks.items():
            assert [request.args[0].count("=") for request in task.instances] == [used[name] + 1] * 2


def test_prompts_and_results_are_those_of_lm_eval_itself(models, tiny_tokenizer, tmp_path):
    write_sums(tmp_path, "three", "num_fewshot: 3\nfewshot_split: test\n")
    harness = Harness(HarnessConfig(["three"], [], include_path=str(tmp_path)))
    ours = harness.evaluate(models[0], tiny_tokenizer)["three"]
    lm = HFLM(models[0], tokenizer=copy.deepcopy(tiny_tokenizer), batch_size=4, softmax_dtype="float32")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs = simple_evaluate(lm, tasks=["three"], task_manager=manager, bootstrap_iters=0)
    prompts = [sample["arguments"][0][0] for sample in theirs["samples"]["three"]]
    assert [request.args[0] for request in harness.tasks["three"].instances] == prompts
    assert (ours["num_fewshot"], ours["exact_match"]) == (3, theirs["results"]["three"]["exact_match,none"])


def test_a_task_that_would_write_more_than_the_model_has_positions_for_is_refused_before_the_search(
    models, tiny_tokenizer, tmp_path
):
    write_sums(tmp_path, "own", "")
    config = HarnessConfig(["own"], [], include_path=str(tmp_path))
    assert Harness(config).check(models[0], tiny_tokenizer) == []
    written = tmp_path / "own.yaml"
    written.write_text(written.read_text().replace("max_gen_toks: 8", "max_gen_toks: 256"))
    with pytest.raises(DataError, match=r"'own' lets the model write 256 tokens .* less than the model's 256 positions"):
        Harness(config).check(models[0], tiny_tokenizer)


def test_an_answer_that_is_written_ends_before_the_first_of_its_stops_whatever_the_batch(models, tiny_tokenizer, tmp_path):
    write_sums(tmp_path, "own", "")
    answers = []
    for batch_size in (1, 7):
        harness = Harness(HarnessConfig(["own"], [], include_path=str(tmp_path), batch_size=batch_size))
        harness.evaluate(models[0], tiny_tokenizer)
        answers.append([request.resps[0] for request in harness.tasks["own"].instances])
    for request, answer in zip(harness.tasks["own"].instances, answers[0], strict=True):
        tokens = tiny_tokenizer(request.args[0])["input_ids"]
        for _ in range(8):
            tokens.append(int(models[0](torch.tensor([tokens])).logits[0, -1].argmax()))
        written = tiny_tokenizer.decode(tokens[-8:])
        assert answer == re.split(r"<\|end\|>|[ .]", written)[0]
    assert answers[1] == answers[0]


def write_sums(folder, name, lines):
    """A task of twenty sums that are written out."""
    documents = [{"question": f"{i} + {i + 1} =", "answer": f"{2 * i + 1}"} for i in range(20)]
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / name}.jsonl}}}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: answer\n"
        "generation_kwargs: {until: [' ', .], max_gen_toks: 8}\n"
        f"metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]\n{lines}"
    )
