import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import selfprune.embedded
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.errors import ConfigError, LanguageModelError, SelfpruneError
from selfprune.language_models.local import LocalLanguageModel
from selfprune.language_models.sampler import Sampler
from selfprune.language_models.self import SelfLanguageModel
from selfprune.models.units import list_units
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.coefficients import MAX_OFFSET, MAX_SPREAD
from selfprune.proposers.prompted.coefficient_replies import coefficients_schema
from selfprune.proposers.prompted.moves import MAX_MOVE_PERCENT, MAX_MOVES, moves_schema
from selfprune.proposers.prompted.operators import OPERATORS
from selfprune.proposers.prompted.self_pruner import SelfPruner, SelfPrunerProposer

EMBEDDED = Path(selfprune.embedded.__file__).parent / "weights"
KINDS = ["q", "k", "v", "o", "gate", "up", "down"]
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 4000},
    "gemma3_text": {},
    "opt": {},
    "gpt2": {"n_positions": 400},
    "falcon": {},
}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer


@pytest.fixture(scope="module")
def tiny_model(make_tiny_model):
    def make(family="llama", n_positions=4096, **settings):
        return make_tiny_model(family, initializer_range=0.3, max_position_embeddings=n_positions, **settings)

    return make


@pytest.fixture(scope="module")
def language_model(tiny_model, tokenizer):
    return SelfLanguageModel(max_reply_tokens=2000).build(tiny_model(), tokenizer)


def labels(n_blocks):
    return [f"{block} {kind}" for block in range(n_blocks) for kind in KINDS]


def assert_meets_coefficients_schema(text):
    reply = json.loads(text)
    assert list(reply) == ["offset", "slope", "first", "last", "spread"]
    assert list(reply["offset"]) == list(reply["slope"]) == KINDS
    percents = [*reply["offset"].values(), *reply["slope"].values(), reply["first"], reply["last"]]
    assert all(type(p) is int and abs(p) <= MAX_OFFSET for p in percents)
    assert 0 <= reply["spread"] <= MAX_SPREAD
    assert json.dumps(reply, separators=(",", ":")) == text


def assert_meets_moves_schema(text, n_blocks):
    moves = json.loads(text)["moves"]
    assert 1 <= len(moves) <= MAX_MOVES
    for move in moves:
        assert all(move[end] in labels(n_blocks) for end in ("from", "to"))
        assert 1 <= move["percent"] <= MAX_MOVE_PERCENT


@pytest.mark.parametrize("n_blocks", [12, 32])
def test_a_random_model_answers_within_the_schema(language_model, n_blocks):
    for reply in language_model.complete("score 1.2", coefficients_schema(KINDS), n=3, seed=n_blocks):
        assert_meets_coefficients_schema(reply.text)
    for reply in language_model.complete("score 1.2", moves_schema(labels(n_blocks), labels(n_blocks)), n=3, seed=n_blocks):
        assert_meets_moves_schema(reply.text, n_blocks)


def test_replies_to_one_prompt_differ_and_repeat_with_the_seed(language_model):
    schema = coefficients_schema(KINDS)
    first = language_model.complete("a prompt", schema, n=4, seed=7)
    assert len({reply.text for reply in first}) == 4
    assert language_model.complete("a prompt", schema, n=4, seed=7) == first
    assert language_model.complete("a prompt", schema, n=4, seed=8) != first


def test_sampling_leaves_the_global_generator_alone(language_model):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = language_model.complete("a prompt", DIGIT, n=3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert language_model.complete("a prompt", DIGIT, n=3, seed=1) == first


@pytest.mark.parametrize("family", FAMILIES)
def test_logprob_is_that_of_the_sampled_tokens_without_a_cache_or_gaps(tiny_model, tokenizer, family):
    model = tiny_model(family, **FAMILIES[family])
    language_model = Sampler(model, tokenizer, temperature=0.7, max_reply_tokens=300)
    schema, prompt_ids = moves_schema(labels(12), labels(12)), language_model._encode("move some pruning", 10)
    rows = language_model._sample(prompt_ids, schema, n=4, seed=0, n_max=300)
    assert len({len(row.reply_ids) for row in rows}) > 1
    for row in rows:
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt_ids + row.reply_ids])).logits[0, len(prompt_ids) - 1 : -1] / 0.7
        matcher, expected, i = language_model._matcher(schema), 0.0, 0
        while i < len(row.reply_ids):
            forced = matcher.compute_ff_tokens()
            if not forced:
                allowed = [t for t, weight in enumerate(matcher.compute_logit_bias()) if weight]
                expected += float(logits_TV[i, row.reply_ids[i]] - logits_TV[i, allowed].logsumexp(0))
            taken = forced or [row.reply_ids[i]]
            assert row.reply_ids[i : i + len(taken)] == taken
            matcher.consume_tokens(taken)
            i += len(taken)
        assert row.logprob == pytest.approx(expected, abs=1e-3)


def test_logprobs_of_all_replies_sum_to_one(language_model):
    replies = language_model.complete("digit", {"type": "integer", "minimum": 1, "maximum": 3}, n=64, seed=0)
    logprobs = {reply.text: reply.logprob for reply in replies}
    assert set(logprobs) == {"1", "2", "3"}
    assert sum(torch.tensor(list(logprobs.values())).exp()) == pytest.approx(1.0, abs=1e-5)


def test_low_temperature_gives_one_reply(tiny_model, tokenizer):
    model = tiny_model()
    replies = (
        SelfLanguageModel(temperature=1e-3).build(model, tokenizer).complete("a prompt", coefficients_schema(KINDS), n=4, seed=0)
    )
    assert len({reply.text for reply in replies}) == 1


def test_a_reply_ends_at_the_end_token_where_the_schema_could_go_on(language_model):
    replies = language_model.complete("a number", {"type": "integer", "minimum": 0}, n=8, seed=0)
    assert all(reply.text == str(int(reply.text)) for reply in replies)
    assert len({len(reply.text) for reply in replies}) > 1


@pytest.mark.parametrize("limit", [1, 20])
def test_a_reply_that_reaches_the_limit_is_returned_unfinished(limit, tiny_model, tokenizer):
    language_model = SelfLanguageModel(max_reply_tokens=limit).build(tiny_model(), tokenizer)
    for reply in language_model.complete("a prompt", coefficients_schema(KINDS), n=2, seed=0):
        assert reply.n_reply_tokens == limit
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(reply.text)


@pytest.mark.parametrize("extra", [-20, 0, 37])
def test_model_and_tokenizer_may_differ_in_vocabulary_size(tiny_model, tokenizer, extra):
    language_model = SelfLanguageModel().build(tiny_model(vocab_size=len(tokenizer) + extra), tokenizer)
    schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 3, "maxItems": 3}
    for reply in language_model.complete("abc", schema, n=3, seed=0):
        assert len(json.loads(reply.text)) == 3


def test_a_long_prompt_is_cut_from_the_left_with_a_warning(tiny_model, tokenizer, caplog):
    language_model = SelfLanguageModel(max_reply_tokens=10).build(tiny_model(n_positions=30), tokenizer)
    ending = "moves from to"
    assert language_model.complete(ending, DIGIT, n=1, seed=0)[0].n_prompt_tokens < 20
    assert not caplog.records
    kept_ids = language_model._encode("x" * 200 + ending, 10)
    assert len(kept_ids) == 20
    assert tokenizer.decode(kept_ids).endswith(ending)
    assert "cut from the left to the 20" in caplog.text
    assert language_model.complete("x" * 200 + ending, DIGIT, n=1, seed=0)[0].n_prompt_tokens == 20


def test_prompt_and_reply_stay_within_the_positions_of_a_small_context(tiny_model, tokenizer):
    language_model = SelfLanguageModel(max_reply_tokens=400).build(tiny_model(n_positions=64), tokenizer)
    reply = language_model.complete("x" * 500, coefficients_schema(KINDS), n=1, seed=0)[0]
    assert (reply.n_prompt_tokens, reply.n_reply_tokens) == (32, 32)


def test_a_choice_keeps_all_of_a_prompt_that_leaves_room_for_the_longest_option(tiny_model, tokenizer, caplog):
    language_model = SelfLanguageModel(max_reply_tokens=400).build(tiny_model(n_positions=64), tokenizer)
    options = ["0 q > 3 up 10%", "no"]
    n_longest = len(tokenizer(options[0], add_special_tokens=False)["input_ids"])
    fitting = "x" * (64 - n_longest)
    assert len(tokenizer(fitting)["input_ids"]) == 64 - n_longest
    assert language_model.score(fitting, options)[0].n_prompt_tokens == 64 - n_longest
    assert not caplog.records
    assert language_model.score("x" + fitting, options)[0].n_prompt_tokens == 64 - n_longest
    assert "cut from the left" in caplog.text


def test_a_chat_model_is_asked_in_its_chat_form(tiny_model, tokenizer):
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<end>")
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
    )
    language_model = SelfLanguageModel(max_reply_tokens=10).build(tiny_model(n_positions=60), chat)
    assert chat.decode(language_model._encode("hello", 10)) == "<user>hello<model>"
    long = chat.decode(language_model._encode("y" * 300, 10))
    assert long.startswith("<user>yy")
    assert long.endswith("yy<model>")


def test_a_prompt_of_one_token_is_answered(tokenizer, language_model):
    assert len(tokenizer("a")["input_ids"]) == 1
    assert language_model.complete("a", DIGIT, n=2, seed=0)[0].n_prompt_tokens == 1


def test_an_empty_prompt_a_bad_schema_and_broken_weights_are_told(tiny_model, tokenizer, language_model):
    with pytest.raises(LanguageModelError, match="at least one token"):
        language_model.complete("", DIGIT, n=1, seed=0)
    with pytest.raises(LanguageModelError, match="JSON schema"):
        language_model.complete("a", {"type": "nonsense"}, n=1, seed=0)
    broken = tiny_model()
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(LanguageModelError, match="finite"):
        SelfLanguageModel().build(broken, tokenizer).complete("a", DIGIT, n=1, seed=0)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": float("nan")}, {"max_reply_tokens": 0}])
def test_settings_out_of_range_fail(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SelfLanguageModel(**settings)


@pytest.mark.parametrize("n_blocks", [12, 32])
def test_the_embedded_model_answers_within_the_schema(n_blocks):
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()
    language_model = SelfLanguageModel().build(model, AutoTokenizer.from_pretrained(EMBEDDED))
    for reply in language_model.complete("Percents:\n", coefficients_schema(KINDS), n=2, seed=0):
        assert_meets_coefficients_schema(reply.text)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_logprobs_of_the_options_computed_without_a_cache(tiny_model, tokenizer, family):
    model = tiny_model(family, **FAMILIES[family])
    language_model = Sampler(model, tokenizer, temperature=0.5, max_reply_tokens=300)
    options = ["0 q > 3 up 10%", "no", "1 down > 2 k 5%; 0 gate > 1 v 5%"]
    replies = language_model.score("Which is better?\n", options)
    assert [reply.text for reply in replies] == options
    prompt_ids = language_model._encode("Which is better?\n", 300)
    assert [reply.n_prompt_tokens for reply in replies] == [len(prompt_ids), 0, 0]
    for reply in replies:
        ids = tokenizer(reply.text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([prompt_ids + ids])).logits[0].float()
        logprobs_TV = logits_TV.log_softmax(dim=-1)[len(prompt_ids) - 1 : -1]
        assert reply.logprob == pytest.approx(float(logprobs_TV[range(len(ids)), ids].sum()), rel=1e-4, abs=1e-3)
        assert reply.n_reply_tokens == len(ids)


def test_an_empty_option_and_broken_weights_are_told(tiny_model, tokenizer, language_model):
    with pytest.raises(LanguageModelError, match="an option must hold at least one token, got ''"):
        language_model.score("a prompt", ["a", ""])
    model = tiny_model()
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(LanguageModelError, match="must be finite"):
        SelfLanguageModel().build(model, tokenizer).score("a prompt", ["a"])


def test_another_model_of_this_machine_answers_and_the_pruned_one_is_left_alone(tmp_path, tiny_model, tokenizer):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    language_model = LocalLanguageModel(path=str(folder), max_reply_tokens=50).build(None, None)
    assert language_model.complete("A digit: ", DIGIT, n=2, seed=0)[0].text.isdigit()


@pytest.mark.parametrize(("path", "message"), [("", "language_model.path must be"), ("no/such/folder", "no/such/folder")])
def test_a_model_that_is_not_there_is_told(path, message):
    with pytest.raises(SelfpruneError, match=message):
        LocalLanguageModel(path=path).build(None, None)


def test_a_model_of_32_blocks_never_gives_an_invalid_reply(tiny_model, tokenizer):
    model = tiny_model(num_hidden_layers=32)
    grid = LevelGrid.with_constant_step(list_units(model), 0.05)
    space = SearchSpace(grid, Target.in_weights(grid, math.ceil(0.6 * grid.n_weights())))
    language_model = SelfLanguageModel().build(model, tokenizer)
    for operator in OPERATORS:
        settings = SelfPruner([operator], n_coefficient_calls=0)
        proposals = SelfPrunerProposer(space, language_model, seed=0, config=settings).ask(4)
        assert len(proposals) == 4
        for proposal in proposals:
            assert proposal.operator == operator
            assert not proposal.repair
            assert not proposal.failure
            assert space.target.is_met(proposal.allocation)
