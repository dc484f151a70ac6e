import json

import pytest

from selfprune.errors import ConfigError, LanguageModelError, SelfpruneError
from selfprune.language_models.base import Reply
from selfprune.language_models.recorded import RecordingLanguageModel

SCHEMA = {"type": "integer"}


class CountingLanguageModel:
    """Numbers its calls; its replies say which call they answer."""

    name = "counting"

    def __init__(self):
        self.n_calls = 0

    def complete(self, prompt, schema, n, seed):
        self.n_calls += 1
        return [Reply(f"{prompt} {seed} {self.n_calls} {i} \ud800é", -0.1 * i, 7, 3) for i in range(n)]


def never():
    raise AssertionError("the model must not be loaded")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "language_model_calls.jsonl"


def record(path, n_calls):
    recorder = RecordingLanguageModel(CountingLanguageModel, path)
    return [recorder.complete(f"prompt {k}", SCHEMA, n=2, seed=k) for k in range(n_calls)]


def test_every_call_is_on_disk_when_it_returns(path):
    recorder = RecordingLanguageModel(CountingLanguageModel, path)
    for k in range(3):
        replies = recorder.complete(f"prompt {k}", SCHEMA, n=2, seed=10 + k)
        last = json.loads(path.read_text().splitlines()[-1])
        assert {key: last[key] for key in ("call", "model", "prompt", "seed", "n")} == {
            "call": k,
            "model": "counting",
            "prompt": f"prompt {k}",
            "seed": 10 + k,
            "n": 2,
        }
        assert last["replies"] == [
            {"text": r.text, "logprob": r.logprob, "n_prompt_tokens": 7, "n_reply_tokens": 3} for r in replies
        ]
        assert last["seconds"] >= 0.0
        assert len(last["schema_sha256"]) == 64
    assert len(path.read_text().splitlines()) == 3


def test_a_recorded_run_repeats_without_its_model(path):
    replies = record(path, 3)
    written = path.read_bytes()
    recorder = RecordingLanguageModel(never, path)
    assert [recorder.complete(f"prompt {k}", SCHEMA, n=2, seed=k) for k in range(3)] == replies
    assert path.read_bytes() == written


def test_totals_count_repeated_and_new_calls(path):
    record(path, 2)
    recorder = RecordingLanguageModel(CountingLanguageModel, path)
    for k in range(3):
        recorder.complete(f"prompt {k}", SCHEMA, n=2, seed=k)
    assert (recorder.n_calls, recorder.n_prompt_tokens, recorder.n_reply_tokens) == (3, 42, 18)
    assert recorder.seconds == pytest.approx(sum(json.loads(line)["seconds"] for line in path.read_text().splitlines()))


@pytest.mark.parametrize("n_cut", [1, 20, 150])
def test_a_line_that_a_kill_cut_short_is_dropped_and_asked_again(path, n_cut):
    record(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-n_cut])
    recorder = RecordingLanguageModel(CountingLanguageModel, path)
    for k in range(3):
        recorder.complete(f"prompt {k}", SCHEMA, n=2, seed=k)
    calls = [json.loads(line) for line in path.read_text().splitlines()]
    assert [call["prompt"] for call in calls] == ["prompt 0", "prompt 1", "prompt 2"]
    assert path.read_bytes().startswith(b"".join(whole.splitlines(keepends=True)[:2]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": "prompt 1"}, "prompt"),
        ({"seed": 5}, "seed"),
        ({"n": 3}, "'n' as 3"),
        ({"schema": {"type": "string"}}, "schema"),
    ],
)
def test_a_run_that_parts_from_its_record_is_stopped(path, change, named):
    record(path, 2)
    written = path.read_bytes()
    recorder = RecordingLanguageModel(never, path)
    with pytest.raises(ConfigError, match=f"does not belong to this run.*{named}"):
        recorder.complete(**{"prompt": "prompt 0", "schema": SCHEMA, "n": 2, "seed": 0, **change})
    assert path.read_bytes() == written


def test_a_whole_line_that_is_no_json_is_told(path):
    record(path, 1)
    with path.open("a") as file:
        file.write("not JSON\n")
    with pytest.raises(ConfigError, match="cannot be read back"):
        RecordingLanguageModel(never, path)


def test_a_failing_call_leaves_no_line(path):
    class Unreachable(CountingLanguageModel):
        def complete(self, prompt, schema, n, seed):
            raise LanguageModelError("cannot be reached")

    with pytest.raises(LanguageModelError, match="reached"):
        RecordingLanguageModel(Unreachable, path).complete("prompt", SCHEMA, n=1, seed=0)
    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    recorder = RecordingLanguageModel(CountingLanguageModel, tmp_path / "missing" / "calls.jsonl")
    with pytest.raises(SelfpruneError, match="could not be written"):
        recorder.complete("prompt", SCHEMA, n=1, seed=0)


class RefusingLanguageModel:
    """Answers a share of its calls."""

    name = "refusing"

    def complete(self, prompt, schema, n, seed):
        return [Reply("1", 0.0, 7, 1) if seed == 0 else Reply("", 0.0, 0, 0, failure="HTTP 401: bad key") for _ in range(n)]


def test_an_endpoint_that_turns_requests_away_is_told_once_with_reason_and_count(path):
    recorder = RecordingLanguageModel(RefusingLanguageModel, path)
    for seed in (0, 1):
        recorder.complete("prompt", SCHEMA, n=2, seed=seed)
        assert recorder.unanswered() == ""
    recorder.complete("prompt", SCHEMA, n=2, seed=2)
    told = "4 of the 6 replies that the language model was asked for did not come, most often (4 times) because of this: "
    assert recorder.unanswered().startswith(f"{told}HTTP 401: bad key")
    assert recorder.unanswered() == ""
