"""Pairs of prompts and references from a user's file, as one more task of the report."""

import json

import pytest
from in_turn import in_turn

from selfprune.errors import ConfigError, DataError
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.harness_config import HarnessConfig
from selfprune.evaluators.pairs import read_pairs
from selfprune.models.loading import load_model
from selfprune.models.model_config import ModelConfig

PAIRS = [
    {"prompt": "3 + 4 =", "reference": "7. 5 + 8 = 13. 1 + 1 = 3."},
    {"prompt": "Count from 3 to 8:", "reference": " 3 4 5 6 7 8. "},
]


@pytest.fixture(scope="module")
def embedded():
    return load_model(ModelConfig("embedded", device="cpu"))


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)) + "\n\n")
    return path


def test_a_model_is_asked_for_every_pair_and_compared_with_its_reference(pairs_file, embedded):
    harness = Harness(HarnessConfig(tasks=[], search_tasks=[], pairs=str(pairs_file)))
    found = harness.evaluate(embedded.model, embedded.tokenizer)["pairs"]
    # it knows how to count, and no sum is wrong in its texts
    assert found["exact_match,line"] == 0.5
    assert 0 < found["chrf,line"] < 100
    assert (found["n_documents"], found["num_fewshot"], found["primary"]) == (2, 0, "exact_match,line")


def test_as_many_tokens_are_written_as_are_allowed(pairs_file, embedded):
    harness = Harness(HarnessConfig(tasks=[], search_tasks=[], pairs=str(pairs_file), pairs_tokens=1))
    assert harness.evaluate(embedded.model, embedded.tokenizer)["pairs"]["exact_match,line"] == 0.0


def test_texts_are_read_as_they_stand(pairs_file):
    assert read_pairs(pairs_file) == PAIRS


@in_turn(
    ("text", "said"),
    [
        ("", "but holds none"),
        ("no JSON", "but line 1 is 'no JSON'"),
        ('{"prompt": "a", "reference": "b"}\n["a", "b"]', "but line 2 is"),
        ('{"prompt": "a"}', "but line 1 is"),
        ('{"prompt": "a", "reference": " "}', "texts that are not empty"),
        ('{"prompt": "a", "reference": "b\\nc"}', "a reference of one line"),
    ],
)
def test_a_file_of_another_form_is_told(text, said, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        HarnessConfig(pairs=str(tmp_path / "pairs.jsonl"))


def test_a_missing_file_and_no_tokens_are_told(tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl should hold lines such as .*, but cannot be read"):
        HarnessConfig(pairs=str(tmp_path / "missing.jsonl"))
    with pytest.raises(ConfigError, match=r"harness\.pairs_tokens must be at least 1, got 0"):
        HarnessConfig(pairs_tokens=0)
