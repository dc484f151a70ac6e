import json
from dataclasses import replace

import pytest

from selfprune.errors import LanguageModelError
from selfprune.language_models.base import Reply
from selfprune.language_models.recorded import RecordingLanguageModel
from selfprune.language_models.scripted import Scripted, ScriptedLanguageModel

REPLIES = [Reply("a", -1.5, 7, 1), Reply("", None, 7, 0, failure="status 500"), Reply("c ü \n", None, 7, 400)]


class Moody:
    """Answers with text, or with a failure, and scores."""

    name = "moody"

    def complete(self, prompt, schema, n, seed):
        return REPLIES[:n]

    def score(self, prompt, options):
        return [Reply(option, -float(i), 7, 1) for i, option in enumerate(options)]


def talk(model):
    """What a search may ask, and what it hears."""
    return [
        model.complete("first", {"type": "string"}, n=3, seed=0),
        model.score("which?", ["x", "y"]),
        model.complete("second", {}, n=1, seed=1),
        model.score("second", ["z"]),
    ]


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "calls.jsonl"
    return path, talk(RecordingLanguageModel(Moody, path))


def without_source(calls):
    return [[replace(reply, source=None) for reply in replies] for replies in calls]


def test_texts_are_given_out_in_their_order():
    model = ScriptedLanguageModel.from_texts(["a", "b", "c"])
    assert [reply.text for reply in model.complete("x", {}, n=2, seed=0)] == ["a", "b"]
    assert [reply.text for reply in model.complete("y", {}, n=1, seed=0)] == ["c"]


def test_a_script_at_its_end_fails():
    with pytest.raises(LanguageModelError, match="only 1 are left"):
        ScriptedLanguageModel.from_texts(["a"]).complete("x", {}, n=2, seed=0)


def test_a_record_is_a_script_with_its_failures_and_scores(recorded):
    path, heard = recorded
    assert [len(replies) for replies in heard] == [3, 2, 1, 1]
    assert heard[0][1].failure == "status 500"
    assert talk(ScriptedLanguageModel(path)) == without_source(heard)


def test_the_record_of_a_replay_is_the_record_but_for_model_and_seconds(recorded, tmp_path):
    path, heard = recorded
    again = tmp_path / "again.jsonl"
    assert talk(RecordingLanguageModel(lambda: Scripted(str(path)).build(None, None), again)) == heard
    first, second = ([json.loads(line) for line in p.read_text().splitlines()] for p in (path, again))
    assert [call.pop("model") for call in second] == [f"scripted by {path}"] * 4
    assert [call.pop("model") for call in first] == ["moody"] * 4
    assert all(call.pop("seconds") >= 0 for call in first + second)
    assert first == second


def test_a_replay_that_was_broken_off_goes_on_where_it_was(recorded, tmp_path):
    path, heard = recorded
    again = tmp_path / "again.jsonl"
    talk(RecordingLanguageModel(lambda: ScriptedLanguageModel(path), again))
    again.write_text("".join(again.read_text().splitlines(keepends=True)[:2]))
    assert talk(RecordingLanguageModel(lambda: ScriptedLanguageModel(path), again)) == heard


def test_a_run_that_asks_something_else_is_told(recorded):
    path, _ = recorded
    with pytest.raises(LanguageModelError, match="expected 'first', got 'third'"):
        ScriptedLanguageModel(path).complete("third", {}, n=3, seed=0)
    with pytest.raises(LanguageModelError, match=r"expected 'a reply of the model's own', got 'a choice|expected \"a reply"):
        ScriptedLanguageModel(path).score("first", ["a"])
    model = ScriptedLanguageModel(path)
    model.complete("first", {}, n=3, seed=0)
    with pytest.raises(LanguageModelError, match="expected 'a choice among options'"):
        model.complete("which?", {}, n=2, seed=0)
    with pytest.raises(LanguageModelError, match="expected 'y', got 'n'"):
        model.score("which?", ["x", "n"])


def test_the_place_where_two_long_prompts_part_is_shown(tmp_path):
    path = tmp_path / "calls.jsonl"
    RecordingLanguageModel(Moody, path).complete("same " * 100 + "score 1.2", {}, n=1, seed=0)
    with pytest.raises(LanguageModelError, match=r"score 1\.2', got '.*score 1\.3'"):
        ScriptedLanguageModel(path).complete("same " * 100 + "score 1.3", {}, n=1, seed=0)


@pytest.mark.parametrize(
    "content",
    [
        '{"prompt": "a"}',
        '{"prompt": "a", "replies": [{"text": "b"}]}',
        '{"prompt": "a", "replies": [{"text": 3, "logprob": null, "n_prompt_tokens": 0, "n_reply_tokens": 0}]}',
        '{"prompt": "a", "replies": [{"words": "b", "logprob": null, "n_prompt_tokens": 0, "n_reply_tokens": 0}]}',
        '["prompt", "replies"]',
        '{"prompt": "a", "repl',
    ],
)
def test_a_file_that_is_no_record_is_told(tmp_path, content):
    (tmp_path / "calls.jsonl").write_text(content + "\n")
    with pytest.raises(LanguageModelError, match=r"calls\.jsonl, line 1, cannot be read back"):
        ScriptedLanguageModel(tmp_path / "calls.jsonl")


def test_a_missing_script_is_told(tmp_path):
    with pytest.raises(LanguageModelError, match="cannot be read"):
        ScriptedLanguageModel(tmp_path / "none.jsonl")
