import copy
import random

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import processors

from selfprune.errors import DataError
from selfprune.evaluators import scored_tokens
from selfprune.evaluators.scored_tokens import ScoredTokensLM

ROUNDING = 2e-5
"""Relative; the head multiplies matrices of other shapes, and every product sums 32 numbers."""


@pytest.fixture
def family(any_family):
    """Every family, not one of each layout alone."""
    return any_family


@pytest.fixture
def requests():
    """Answers of one to nine tokens, some of one token after the same context, one longer than the model's positions."""
    rng = random.Random(0)
    shared = [rng.randrange(300) for _ in range(20)]
    lengths = [(rng.randint(1, 40), rng.randint(1, 9)) for _ in range(12)]
    found = [([rng.randrange(300) for _ in range(n)], [rng.randrange(300) for _ in range(m)]) for n, m in lengths]
    found += [(shared, [token]) for token in (5, 6, 7)]
    found.append(([1] * 80, [2, 3]))
    return [(("context", "answer"), context, answer) for context, answer in found]


def both(model, tokenizer):
    settings = {"batch_size": 4, "softmax_dtype": "float32"}
    return (kind(model, tokenizer=copy.deepcopy(tokenizer), **settings) for kind in (HFLM, ScoredTokensLM))


def test_every_family_scores_as_lm_eval_does(family, make_tiny_model, tiny_tokenizer, requests, monkeypatch):
    monkeypatch.setattr(scored_tokens, "N_LOGITS_AT_ONCE", 5 * 300)
    theirs, ours = (lm._loglikelihood_tokens(requests, True) for lm in both(make_tiny_model(family), tiny_tokenizer))
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=ROUNDING)
    assert [is_greedy for _, is_greedy in ours] == [is_greedy for _, is_greedy in theirs]


def test_answers_of_several_lengths_after_the_same_tokens_are_each_read_at_their_place(make_tiny_model, tiny_tokenizer):
    model, tokens = make_tiny_model("llama"), [9, 8, 7, 6, 5]
    *_, ours = both(model, tiny_tokenizer)
    logprobs_TV = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = [logprobs_TV[-1, 4].item(), (logprobs_TV[-1, 3] + logprobs_TV[-2, 5] + logprobs_TV[-3, 6]).item()]
    found = ours._loglikelihood_tokens([(None, tokens, [4]), (None, tokens[:3], [6, 5, 3])], True)
    assert [value for value, _ in found] == pytest.approx(expected, rel=ROUNDING)


def test_the_likeliest_answer_is_known_as_such(make_tiny_model, tiny_tokenizer, requests):
    model = make_tiny_model("llama", max_position_embeddings=128)
    asked = []
    for _, context, _ in requests[:6]:
        tokens = list(context)
        for _ in range(3):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        asked += [(None, context, tokens[-3:]), (None, context, [*tokens[-3:-1], (tokens[-1] + 1) % 300])]
    *_, ours = both(model, tiny_tokenizer)
    assert [is_greedy for _, is_greedy in ours._loglikelihood_tokens(asked, True)] == [True, False] * 6


def test_no_more_logits_are_held_than_are_scored_at_once(make_tiny_model, tiny_tokenizer, requests, monkeypatch):
    monkeypatch.setattr(scored_tokens, "N_LOGITS_AT_ONCE", 7 * 300)
    model, shapes = make_tiny_model("gemma2"), []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: shapes.append(logits.shape))
    *_, ours = both(model, tiny_tokenizer)
    ours._loglikelihood_tokens(requests, True)
    assert max(shape[0] * shape[1] for shape in shapes) == 7
    n_scored = sum(len(answer) for _, _, answer in requests) - 2  # the three answers of one token share one
    assert sum(shape[0] * shape[1] for shape in shapes) == n_scored


def test_a_model_without_an_output_embedding_is_scored_all_the_same(make_tiny_model, tiny_tokenizer, requests, monkeypatch):
    model = make_tiny_model("llama")
    theirs, ours = both(model, tiny_tokenizer)
    expected = theirs._loglikelihood_tokens(requests, True)
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda _: None)
    assert [value for value, _ in ours._loglikelihood_tokens(requests, True)] == pytest.approx([value for value, _ in expected])


def test_an_answer_without_tokens_or_beyond_the_positions_is_refused(make_tiny_model, tiny_tokenizer):
    *_, ours = both(make_tiny_model("llama"), tiny_tokenizer)
    for answer in ([], [1] * 65):
        with pytest.raises(DataError, match=f"between 1 and 64 tokens, .* got {len(answer)}: .*'what'"):
            ours._loglikelihood_tokens([(("context", "what"), [1], answer)], True)


def test_a_token_that_begins_texts_stands_before_a_whole_text_once_and_is_not_scored(make_tiny_model, tiny_tokenizer):
    model, text = make_tiny_model("llama"), "The dog sings. The cat sings."
    request = Instance("loglikelihood_rolling", {}, (text,), 0, ("task", 0, 1))
    *_, plain = both(model, tiny_tokenizer)
    begins = copy.deepcopy(tiny_tokenizer)
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", tiny_tokenizer.bos_token_id)]
    )
    *_, beginning = both(model, begins)
    assert beginning.tok_encode(text) == [tiny_tokenizer.bos_token_id, *plain.tok_encode(text)]
    assert beginning.loglikelihood_rolling([request], True) == plain.loglikelihood_rolling([request], True)
