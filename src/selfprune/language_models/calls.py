"""A line of `language_model_calls.jsonl`: one call of a language model and its replies."""

from pathlib import Path

from typing_extensions import NotRequired, TypedDict

from selfprune.storage.recorded_files import Count, Score, Seconds, Text, read_json_lines


class RecordedReply(TypedDict):
    """A `Reply` without its place, which the line gives; `failure` only where there is one."""

    text: Text
    logprob: Score | None
    n_prompt_tokens: Count
    n_reply_tokens: Count
    failure: NotRequired[Text]


class Answer(TypedDict):
    """What a call came to."""

    model: Text
    replies: list[RecordedReply]
    seconds: Seconds


class Call(Answer):
    """A whole line; `options` stands where they were scored, and the three before it where replies were asked for."""

    call: Count
    prompt: Text
    schema_sha256: NotRequired[Text]
    seed: NotRequired[int]
    n: NotRequired[Count]
    options: NotRequired[list[Text]]


def read_calls(path: Path, n_calls: int) -> list[Call]:
    """The first recorded calls of a language model; none where it was never asked.

    Args:
        path: `language_model_calls.jsonl`.
        n_calls: calls that the run made.

    Raises:
        ConfigError: when the file holds something else.
    """
    if n_calls == 0:
        return []
    return read_json_lines(path, Call, "restore it from a copy or start a new run folder", n_lines=n_calls)
