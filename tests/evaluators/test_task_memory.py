import pytest

from selfprune.evaluators.harness import Harness
from selfprune.evaluators.harness_config import HarnessConfig

GENERATED = """
dataset_path: json
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {until: ["."], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def harness(tmp_path):
    """Makes one with three questions, the longest in the middle, that the model answers in writing, and one embedded task."""
    (tmp_path / "own.jsonl").write_text(
        "".join(f'{{"question": "{question}", "answer": "b"}}\n' for question in ("a a", "a " * 11 + "a", "a a a"))
    )
    task = f"task: own\ndataset_kwargs: {{data_files: {{test: {tmp_path}/own.jsonl}}}}{GENERATED}"
    (tmp_path / "own.yaml").write_text(task)

    def make(batch_size, tasks=("own", "selfprune_sums_report")):
        return Harness(HarnessConfig([*tasks], [], limit=3, batch_size=batch_size, include_path=str(tmp_path)))

    return make


def test_keys_and_values_are_those_of_the_longest_prompt_with_its_answer_in_every_request_at_once(
    harness, make_tiny_model, tiny_tokenizer
):
    model = make_tiny_model("llama")
    n_tokens = len(tiny_tokenizer("a " * 11 + "a")["input_ids"]) + 8
    # keys and values of 2 blocks with 2 heads of 8 numbers of 4 bytes
    of_token = 2 * 2 * 2 * 8 * 4
    assert n_tokens < 64
    assert harness(2).cache_bytes(model, tiny_tokenizer) == 2 * n_tokens * of_token
    assert harness(64).cache_bytes(model, tiny_tokenizer) == 3 * n_tokens * of_token
    assert harness(2).cache_bytes(make_tiny_model("llama", max_position_embeddings=16), tiny_tokenizer) == 2 * 16 * of_token
    assert harness(2).cache_bytes(model.bfloat16(), tiny_tokenizer) == n_tokens * of_token
    assert harness(2, ["selfprune_sums_report"]).cache_bytes(model, tiny_tokenizer) == 0


def test_heads_that_are_not_shared_are_all_kept(harness, make_tiny_model, tiny_tokenizer):
    n_tokens = len(tiny_tokenizer("a " * 11 + "a")["input_ids"]) + 8
    # GPT-2 names neither heads of keys nor their width: 4 heads of a width of 32
    assert harness(1).cache_bytes(make_tiny_model("gpt2"), tiny_tokenizer) == n_tokens * 2 * 2 * 32 * 4
