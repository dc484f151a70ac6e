import copy
import logging
import math
import random
import socket

import lm_eval
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfprune.embedded.tasks import build_documents
from selfprune.errors import ConfigError, DataError
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.harness_config import HarnessConfig
from selfprune.evaluators.task_runs import request_lengths

LIMIT = 12


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte, and no padding token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=alphabet[0])


@pytest.fixture
def model():
    """Random weights, large enough that the choices' log-likelihoods are far apart."""
    generator = torch.Generator().manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


@pytest.fixture(scope="module")
def harness():
    return Harness(HarnessConfig(limit=LIMIT))


def log_likelihood(model, tokenizer, context, choice):
    tokens = tokenizer(f"{context} {choice}")["input_ids"]
    n_context = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        logprobs_TV = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    return sum(logprobs_TV[i - 1, tokens[i]].item() for i in range(n_context, len(tokens)))


def test_accuracy_is_that_of_the_likeliest_choices(harness, model, tokenizer):
    results = harness.evaluate(model, tokenizer, ["selfprune_translation_search", "selfprune_facts_search"])
    for task in ("selfprune_translation", "selfprune_facts"):
        right, right_per_character = [], []
        for document in build_documents(task, "search")[:LIMIT]:
            scores = np.array([log_likelihood(model, tokenizer, document["query"], choice) for choice in document["choices"]])
            right.append(scores.argmax() == document["gold"])
            right_per_character.append((scores / [len(choice) for choice in document["choices"]]).argmax() == document["gold"])
        result = results[f"{task}_search"]
        assert result["acc"] == np.mean(right)
        assert result["acc_norm"] == np.mean(right_per_character)
        assert result["acc_stderr"] == pytest.approx(np.std(right, ddof=1) / math.sqrt(LIMIT), rel=1e-12)


def test_result_counts_documents_and_tokens_and_names_the_version(harness, model, tokenizer):
    result = harness.evaluate(model, tokenizer, ["selfprune_sums_search"])["selfprune_sums_search"]
    documents = build_documents("selfprune_sums", "search")[:LIMIT]
    n_tokens = sum(len(f"{document['query']} {choice}") for document in documents for choice in document["choices"])
    assert (result["n_documents"], result["n_tokens"], result["version"]) == (LIMIT, n_tokens, 1.0)
    described = harness.describe(tokenizer)
    assert (described["lm_eval"], described["prompt_start"]) == (lm_eval.__version__, [])
    assert described["tasks"]["selfprune_sums_search"] == {"version": 1.0, "num_fewshot": 0}


def test_the_token_that_the_tokenizer_puts_before_a_prompt_is_told(harness, tokenizer):
    begins = copy.deepcopy(tokenizer)
    first, last = tokenizer.convert_ids_to_tokens([7, 9])
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} {last} $A", special_tokens=[(first, 7), (last, 9)]
    )
    assert harness.describe(begins)["prompt_start"] == [first, last]


def test_prompts_that_are_cut_are_told_before_the_search(harness, model, tokenizer):
    assert harness.check(model, tokenizer) == []
    lengths = request_lengths(harness.tasks["selfprune_facts_report"], tokenizer)
    model.config.max_position_embeddings = sorted(lengths)[LIMIT]
    n_cut = sum(length > sorted(lengths)[LIMIT] + 1 for length in lengths)
    assert 0 < n_cut < len(lengths) == 4 * LIMIT
    told = [warning for warning in harness.check(model, tokenizer) if "'selfprune_facts_report'" in warning]
    assert told[0].startswith(f"{n_cut} of {4 * LIMIT} prompts of the lm-eval task 'selfprune_facts_report' are longer than")


def test_report_tasks_are_the_default(harness, model, tokenizer):
    assert list(harness.evaluate(model, tokenizer)) == [
        f"selfprune_{t}_report" for t in ("facts", "agreement", "sums", "translation")
    ]


def test_evaluation_repeats_itself_and_leaves_everything_as_it_was(harness, model, tokenizer, capfd):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, second = harness.evaluate(model, tokenizer), harness.evaluate(model, tokenizer)
    assert first == second
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1][1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    assert model.training
    assert tokenizer.pad_token is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level != logging.ERROR


def test_few_shot_examples_are_the_same_for_every_model(model, tokenizer):
    harness = Harness(HarnessConfig(["selfprune_sums_report"], [], limit=4, num_fewshot=3))
    first, second = harness.evaluate(model, tokenizer), harness.evaluate(model, tokenizer)
    assert first == second
    bare = Harness(HarnessConfig(["selfprune_sums_report"], [], limit=4)).evaluate(model, tokenizer)
    assert first["selfprune_sums_report"]["n_tokens"] > 3 * bare["selfprune_sums_report"]["n_tokens"]


def test_embedded_tasks_need_no_network(model, tokenizer, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    Harness(HarnessConfig(limit=2)).evaluate(model, tokenizer)


def test_model_that_answers_nan_has_no_accuracy(harness, model, tokenizer):
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    result = harness.evaluate(model, tokenizer, ["selfprune_sums_search"])["selfprune_sums_search"]
    assert math.isnan(result["acc"])
    assert math.isnan(result["acc_norm_stderr"])


def test_group_of_ones_own_is_run_and_averaged(model, tokenizer, tmp_path):
    (tmp_path / "both.yaml").write_text(
        "group: both\n"
        "task: [selfprune_sums_search, selfprune_facts_search]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    harness = Harness(HarnessConfig([], ["both"], limit=5, include_path=str(tmp_path)))
    results = harness.evaluate(model, tokenizer, ["both"])
    parts = [results["selfprune_sums_search"]["acc"], results["selfprune_facts_search"]["acc"]]
    assert results["both"]["acc"] == pytest.approx(sum(parts) / 2)
    assert harness.evaluate(model, tokenizer) == {}
    with pytest.raises(ConfigError, match=r"must not share a task.*'selfprune_facts_search'"):
        Harness(HarnessConfig(["selfprune_facts_search"], ["both"], include_path=str(tmp_path)))


def test_task_out_of_reach_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: nobody/nothing\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: a\ndoc_to_choice: b\ndoc_to_target: c\n"
    )
    with pytest.raises(DataError, match=r"documents of the lm-eval task 'far'.*run it once with a network") as error:
        Harness(HarnessConfig(["far"], [], include_path=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_task_that_was_not_configured_is_refused(harness, model, tokenizer):
    with pytest.raises(ConfigError, match="built without the task 'piqa'; it has selfprune_facts_report"):
        harness.evaluate(model, tokenizer, ["piqa"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "harness.limit must be at least 1, got 0"),
        ({"batch_size": 0}, "harness.batch_size must be at least 1, got 0"),
        ({"num_fewshot": -1}, "harness.num_fewshot must be at least 0, got -1"),
        ({"include_path": "no/such/folder"}, "harness.include_path must be a folder"),
        ({"search_tasks": ["selfprune_sums_report"]}, "must not share a task.*'selfprune_sums_report'"),
    ],
)
def test_bad_setting_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        HarnessConfig(**settings)


def test_answers_in_writing_are_the_sentence_that_the_model_begins_with(embedded_answers):
    """By transformers' own greedy generation, up to the first full stop; chrF by sacrebleu."""
    import sacrebleu

    found, written, wanted = embedded_answers
    expected = [answer.casefold() == gold.casefold() for answer, gold in zip(written, wanted, strict=True)]
    metrics = found["selfprune_translation_written_search"]
    assert 0 < metrics["exact_match,first_sentence"] == pytest.approx(sum(expected) / len(expected))
    chrf = sacrebleu.corpus_chrf(written, [wanted]).score
    assert metrics["chrf,first_sentence"] == pytest.approx(chrf, abs=1e-6)
    assert metrics["primary"] == "exact_match,first_sentence"


@pytest.fixture(scope="module")
def embedded_answers():
    """What the harness says of the embedded model with part of its weights gone, and what that model writes."""
    from selfprune.models.loading import load_model
    from selfprune.models.model_config import ModelConfig
    from selfprune.models.units import weight_view

    loaded = load_model(ModelConfig("embedded", device="cpu"))
    with torch.no_grad():
        for unit in loaded.units:
            matrix = weight_view(loaded.model, unit)
            matrix[matrix.abs() < matrix.abs().flatten().kthvalue(int(0.55 * matrix.numel())).values] = 0
    documents = build_documents("selfprune_translation", "search")[:LIMIT]
    written = []
    for document in documents:
        prompt = loaded.tokenizer(document["query"], return_tensors="pt")
        tokens = loaded.model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        written.append(loaded.tokenizer.decode(tokens).strip().partition("\n")[0].partition(".")[0] + ".")
    harness = Harness(HarnessConfig(limit=LIMIT, tasks=["selfprune_translation_written_search"], search_tasks=[]))
    found = harness.evaluate(loaded.model, loaded.tokenizer)
    return found, written, [document["choices"][document["gold"]] for document in documents]
