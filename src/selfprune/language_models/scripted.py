"""Replies from a file or a list, without a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfprune.errors import LanguageModelError
from selfprune.language_models.base import Reply


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
        try:
            calls = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self._script: list[tuple[str | None, Reply]] = [
                (call["prompt"], Reply(**reply)) for call in calls for reply in call["replies"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LanguageModelError(
                f"{path} must hold the recorded calls of a language model, one JSON line each, but cannot be read as "
                f"that ({error}); "
                f"give the language_model_calls.jsonl of a finished run"
            ) from error

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> "ScriptedLanguageModel":
        """A script of replies to any prompts, of no tokens."""
        model = cls.__new__(cls)
        model.name = "scripted"
        model._script = [(None, Reply(text, None, 0, 0)) for text in texts]
        return model

    def complete(self, prompt: str, schema: dict[str, Any], n: int, seed: int) -> list[Reply]:
        """The next `n` replies of the script.

        Raises:
            LanguageModelError: when the script is at its end, or was made for another prompt.
        """
        if n > len(self._script):
            raise LanguageModelError(
                f"{self.name}: {n} replies are asked for, but only {len(self._script)} are left; script more calls"
            )
        replies = self._script[:n]
        for expected, _ in replies:
            if expected is not None and expected != prompt:
                raise LanguageModelError(
                    f"{self.name}: the script must follow the prompts of the run it is for, "
                    f"expected {expected[:80]!r}, got {prompt[:80]!r}; record the script with this config"
                )
        self._script = self._script[n:]
        return [reply for _, reply in replies]
