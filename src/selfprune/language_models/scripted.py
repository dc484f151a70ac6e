"""Replies from a file or a list, without a model: a published search is repeated from the record of its calls.

Limits: the run must ask what the recorded one asked, so it needs the same config, code and seed; the first other prompt is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from selfprune.errors import LanguageModelError
from selfprune.language_models.base import LanguageModel, LanguageModelConfig, Reply
from selfprune.language_models.calls import Call
from selfprune.storage.path_fields import path_field
from selfprune.storage.recorded_files import read_json_lines


@dataclass
class Scripted(LanguageModelConfig):
    """The replies of another run take the place of a model.

    Attributes:
        path: the `language_model_calls.jsonl` of that run.
    """

    path: str = path_field(MISSING)

    def check(self) -> None:
        """Reads the script once.

        Raises:
            LanguageModelError: when the file cannot be read or holds something else.
        """
        self.build(None, None)

    def build(self, model: Any, tokenizer: Any) -> LanguageModel:
        """The script at its beginning; the model that is pruned is left alone.

        Raises:
            LanguageModelError: when the file cannot be read or holds something else.
        """
        return ScriptedLanguageModel(Path(self.path).expanduser())


@dataclass(frozen=True)
class _Line:
    """One reply of a script, and the call that it belongs to; a prompt of None fits any."""

    prompt: str | None
    reply: Reply
    is_scored: bool = False


class ScriptedLanguageModel:
    """Answers with the recorded calls of another run, in their order.

    Args:
        path: a `language_model_calls.jsonl`.

    Raises:
        LanguageModelError: when the file cannot be read or holds something else.

    Example:
        >>> ScriptedLanguageModel.from_texts(['{"moves": []}']).complete("any prompt", {}, n=1, seed=0)[0].text
        '{"moves": []}'
    """

    def __init__(self, path: Path) -> None:
        self.name = f"scripted by {path}"
        remedy = "give the language_model_calls.jsonl of a finished run, which holds the recorded calls of a language model"
        calls = read_json_lines(path, Call, remedy, LanguageModelError)
        self._script = [_Line(call["prompt"], Reply(**reply), "options" in call) for call in calls for reply in call["replies"]]

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> "ScriptedLanguageModel":
        """A script of replies to any prompts, of no tokens."""
        model = cls.__new__(cls)
        model.name = "scripted"
        model._script = [_Line(None, Reply(text, None, 0, 0)) for text in texts]
        return model

    def complete(self, prompt: str, schema: dict[str, Any], n: int, seed: int) -> list[Reply]:
        """The next `n` replies of the script.

        Raises:
            LanguageModelError: when the script is at its end, or was made for another call.
        """
        return self._next(prompt, n, is_scored=False)

    def score(self, prompt: str, options: Sequence[str]) -> list[Reply]:
        """The next replies of the script, as many as there are options.

        Raises:
            LanguageModelError: when the script is at its end, or was made for another call or other options.
        """
        replies = self._next(prompt, len(options), is_scored=True)
        for reply, option in zip(replies, options, strict=True):
            if reply.text != option:
                raise self._strayed(reply.text, option)
        return replies

    def recall(self, replies: Sequence[Reply]) -> None:
        """Passes over replies that a resumed run has already."""
        self._script = self._script[len(replies) :]

    def _next(self, prompt: str, n: int, is_scored: bool) -> list[Reply]:
        if n > len(self._script):
            raise LanguageModelError(
                f"{self.name}: {n} replies are asked for, but only {len(self._script)} are left; script more calls"
            )
        lines = self._script[:n]
        for line in lines:
            if line.prompt is not None and line.prompt != prompt:
                raise self._strayed(line.prompt, prompt)
            if line.prompt is not None and line.is_scored != is_scored:
                kinds = "a choice among options", "a reply of the model's own"
                raise self._strayed(*(kinds if line.is_scored else kinds[::-1]))
        self._script = self._script[n:]
        return [line.reply for line in lines]

    def _strayed(self, expected: str, got: str) -> LanguageModelError:
        """The error of a run that asks something else, told from where the two part."""
        same = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
        shown = slice(max(0, same - 40), same + 40)
        return LanguageModelError(
            f"{self.name}: the script must follow the calls of the run it is for, expected {expected[shown]!r}, "
            f"got {got[shown]!r}; record the script with this config"
        )
