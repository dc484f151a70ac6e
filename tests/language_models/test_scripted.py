import pytest

from selfprune.errors import LanguageModelError
from selfprune.language_models.recorded import RecordingLanguageModel
from selfprune.language_models.scripted import ScriptedLanguageModel


def test_texts_are_given_out_in_their_order():
    model = ScriptedLanguageModel.from_texts(["a", "b", "c"])
    assert [reply.text for reply in model.complete("x", {}, n=2, seed=0)] == ["a", "b"]
    assert [reply.text for reply in model.complete("y", {}, n=1, seed=0)] == ["c"]


def test_a_script_at_its_end_fails():
    with pytest.raises(LanguageModelError, match="only 1 are left"):
        ScriptedLanguageModel.from_texts(["a"]).complete("x", {}, n=2, seed=0)


def test_another_runs_record_is_a_script(tmp_path):
    path = tmp_path / "calls.jsonl"
    recorder = RecordingLanguageModel(lambda: ScriptedLanguageModel.from_texts(["a", "b", "c"]), path)
    replies = [recorder.complete("first", {}, n=2, seed=0), recorder.complete("second", {}, n=1, seed=1)]
    model = ScriptedLanguageModel(path)
    assert [model.complete("first", {}, n=2, seed=0), model.complete("second", {}, n=1, seed=1)] == replies
    with pytest.raises(LanguageModelError, match="expected 'first', got 'third'"):
        ScriptedLanguageModel(path).complete("third", {}, n=2, seed=0)


def test_a_missing_script_is_told(tmp_path):
    with pytest.raises(LanguageModelError, match="cannot be read"):
        ScriptedLanguageModel(tmp_path / "none.jsonl")
