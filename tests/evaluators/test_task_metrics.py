"""Tasks of every output type, with their own scorers, on models of random weights."""

import math

import numpy as np
import pytest
import torch

from selfprune.embedded.tasks import build_documents
from selfprune.errors import ConfigError
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.harness_config import HarnessConfig
from selfprune.evaluators.task_loading import load_tasks
from selfprune.evaluators.task_metrics import DocumentScores, primary_metric

OWN_CODE = """
from datasets import Dataset, DatasetDict

def load(**_):
    names = ["dog", "cat", "owl", "cow"]
    choices = {"options": ["low.", "high."]}
    rows = [{"stem": f"The {name} sings", "right": i % 2, "word": name, **choices} for i, name in enumerate(names)]
    return DatasetDict({"test": Dataset.from_list(rows)})

def share(document, results):
    lowest, *_ = results
    return {"acc": 1 / (1 + abs(lowest[0]))}

def broken(document, results):
    raise KeyError("word")
"""
COMMON = "task: own\ncustom_dataset: !function own.load\ntest_split: test\ndoc_to_text: stem\n"
CHOICES = "output_type: multiple_choice\ndoc_to_choice: options\ndoc_to_target: right\n"
MEAN = "aggregation: mean, higher_is_better: true"
OWN_TASKS = {
    "choices": (f"{CHOICES}metric_list: [{{metric: acc_norm, {MEAN}}}]\n", True),
    "last word": ("output_type: loglikelihood\ndoc_to_target: ' {{word}}'\n", True),
    "exact": (f"output_type: generate_until\ndoc_to_target: word\nmetric_list: [{{metric: exact_match, {MEAN}}}]\n", True),
    "whole": ("output_type: loglikelihood_rolling\ndoc_to_target: stem\n", False),
    "share": (f"{CHOICES}process_results: !function own.share\nmetric_list: [{{metric: acc, {MEAN}}}]\n", False),
    "broken": (f"{CHOICES}process_results: !function own.broken\nmetric_list: [{{metric: acc, {MEAN}}}]\n", False),
    "pairs": (f"{CHOICES}metric_list: [{{metric: f1, aggregation: f1, higher_is_better: true}}]\n", False),
}


@pytest.fixture
def write_task(tmp_path):
    """Writes a task of its own and returns its folder."""

    def write(kind):
        (tmp_path / "own.py").write_text(OWN_CODE)
        (tmp_path / "own.yaml").write_text(COMMON + OWN_TASKS[kind][0])
        return str(tmp_path)

    return write


@pytest.fixture
def model(make_tiny_model):
    return make_tiny_model("llama", max_position_embeddings=256)


@pytest.mark.parametrize(
    ("names", "primary"),
    [
        (["perplexity", "perplexity_stderr", "acc", "acc_stderr"], "acc"),
        (
            ["exact_match,strict-match", "exact_match_stderr,strict-match", "exact_match,flexible-extract"],
            "exact_match,strict-match",
        ),
        (["word_perplexity", "word_perplexity_stderr", "byte_perplexity"], "word_perplexity"),
        (["acc_norm", "acc_norm_stderr"], "acc_norm"),
        ([], None),
    ],
)
def test_a_task_is_known_by_acc_or_by_the_first_metric_that_it_lists(names, primary):
    assert primary_metric(names) == primary


@pytest.mark.parametrize("kind", OWN_TASKS)
def test_whether_documents_are_right_or_wrong_is_found_without_a_model(kind, write_task):
    task = load_tasks(["own"], write_task(kind))["own"]["tasks"]["own"]
    assert DocumentScores(task).is_right_or_wrong == OWN_TASKS[kind][1]


@pytest.mark.parametrize("kind", ["share", "whole", "pairs"])
def test_a_search_task_that_cannot_be_compared_document_by_document_is_refused(kind, write_task):
    with pytest.raises(ConfigError, match="finalists are compared document by document; the primary metric of own is another"):
        Harness(HarnessConfig([], ["own"], include_path=write_task(kind)))


def test_the_value_of_every_document_is_told_in_their_order(model, tiny_tokenizer):
    names = ["selfprune_sums_search", "selfprune_facts_search"]
    harness = Harness(HarnessConfig([], names, limit=20))
    scores = harness.score_documents(model, tiny_tokenizer, names)
    found = harness.evaluate(model, tiny_tokenizer, names)
    for name in names:
        assert (len(scores[name]), {*scores[name]}) == (20, {0.0, 1.0})
        assert np.mean(scores[name]) == found[name]["acc"]
    documents = build_documents("selfprune_sums", "search")[:20]
    assert scores["selfprune_sums_search"] == [_is_right(model, tiny_tokenizer, document) for document in documents]
    assert harness.score_documents(model, tiny_tokenizer, names) == scores


def test_a_model_that_answers_nan_answers_nothing_right(model, tiny_tokenizer):
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    harness = Harness(HarnessConfig([], ["selfprune_sums_search"], limit=5))
    assert harness.score_documents(model, tiny_tokenizer, ["selfprune_sums_search"]) == {"selfprune_sums_search": [0.0] * 5}


def test_every_task_names_its_primary_metric_and_which_way_it_is_better(model, tiny_tokenizer, write_task):
    whole = Harness(HarnessConfig(["own"], [], include_path=write_task("whole"))).evaluate(model, tiny_tokenizer)["own"]
    assert [whole[key] for key in ("primary", "higher_is_better", "is_accuracy")] == ["word_perplexity", False, False]
    assert whole["word_perplexity"] > 1


def _is_right(model, tokenizer, document):
    """The plain way: one forward pass per choice."""
    likelihoods = []
    for choice in document["choices"]:
        tokens, n_context = (
            tokenizer(f"{document['query']} {choice}")["input_ids"],
            len(tokenizer(document["query"])["input_ids"]),
        )
        with torch.no_grad():
            logprobs_TV = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        likelihoods.append(sum(logprobs_TV[i - 1, tokens[i]].item() for i in range(n_context, len(tokens))))
    return float(np.argmax(likelihoods) == document["gold"])
