"""Every call of a language model as a JSON line, and its replay."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfprune.language_models.base import LanguageModel, Reply, Resumable
from selfprune.language_models.calls import Answer
from selfprune.storage.journal import Journal


class RecordingLanguageModel:
    """Writes every call to a file; opened on calls that are there already, repeats them before it asks the model.

    So a resumed run gets the replies that the broken run got, without asking for them again. A line holds the position of the
    call, the prompt, the hash of the schema, the seed, the number of replies, the name of the model, the replies and seconds.

    Args:
        inner: gives the language model; called when the first unrecorded call comes.
        path: `language_model_calls.jsonl` of the run.

    Attributes:
        n_calls: calls answered so far, repeated ones included; so are the other totals.
        n_prompt_tokens: tokens of their prompts, as often as they were read.
        n_reply_tokens: tokens of all their replies.
        seconds: time that the model took for them.

    Example:
        >>> recorder = RecordingLanguageModel(lambda: settings.build(model, tokenizer), run_folder / "language_model_calls.jsonl")
        >>> replies = recorder.complete(prompt, schema, n=4, seed=0)
    """

    name = "recorded"

    def __init__(self, inner: Callable[[], LanguageModel], path: Path) -> None:
        self._load_inner = inner
        self._inner: LanguageModel | None = None
        self._repeated: list[Reply] = []
        self._journal = Journal(path)
        self.n_calls = 0
        self.n_prompt_tokens = 0
        self.n_reply_tokens = 0
        self.seconds = 0.0
        self.n_replies = 0
        self._has_warned = False
        self.failures: Counter[str] = Counter()

    def complete(self, prompt: str, schema: dict[str, Any], n: int, seed: int) -> list[Reply]:
        """The recorded replies to this call, or else new ones, which are on disk before they are returned.

        Raises:
            ConfigError: when the recorded call is another one.
            LanguageModelError: when the model cannot be reached.
            SelfpruneError: when the disk is full.
        """
        key = {"prompt": prompt, "schema_sha256": hash_schema(schema), "seed": seed, "n": n}
        return self._answer(key, lambda model: model.complete(prompt, schema, n, seed))

    def score(self, prompt: str, options: Sequence[str]) -> list[Reply]:
        """The recorded scores of these options, or else new ones, which are on disk before they are returned.

        Raises:
            ConfigError: when the recorded call is another one.
            LanguageModelError: when the model cannot be reached.
            SelfpruneError: when the disk is full.
        """
        return self._answer({"prompt": prompt, "options": list(options)}, lambda model: model.score(prompt, options))

    def unanswered(self) -> str:
        """What to warn of where most requests got no reply, with the commonest reason; told once, and empty otherwise."""
        n_failed = sum(self.failures.values())
        if self._has_warned or 2 * n_failed <= self.n_replies:
            return ""
        self._has_warned = True
        reason, n_times = self.failures.most_common(1)[0]
        return (
            f"{n_failed} of the {self.n_replies} replies that the language model was asked for did not come, most often "
            f"({n_times} times) because of this: {reason}; the search went on with its other proposals, so mend this "
            "and begin a new run"
        )

    def _answer(self, key: dict[str, Any], ask: Callable[[LanguageModel], list[Reply]]) -> list[Reply]:
        n_replies = key["n"] if "n" in key else len(key["options"])

        def fault(answer: Answer) -> str:
            n_found = len(answer["replies"])
            return "" if n_found == n_replies else f"it should hold {n_replies} replies, but holds {n_found}"

        record = self._journal.once({"call": self.n_calls, **key}, lambda: self._ask(ask), Answer, fault)
        replies = [Reply(**reply, source=(self.n_calls, i)) for i, reply in enumerate(record["replies"])]
        if self._inner is None:
            self._repeated += replies
        self.n_calls += 1
        self.n_replies += len(replies)
        self.failures.update(reply.failure for reply in replies if reply.failure)
        self.n_prompt_tokens += sum(reply.n_prompt_tokens for reply in replies)
        self.n_reply_tokens += sum(reply.n_reply_tokens for reply in replies)
        self.seconds += record["seconds"]
        return replies

    def _ask(self, ask: Callable[[LanguageModel], list[Reply]]) -> dict[str, Any]:
        if self._inner is None:
            self._inner = self._load_inner()
            if isinstance(self._inner, Resumable):
                self._inner.recall(self._repeated)
        began = time.perf_counter()
        replies = ask(self._inner)
        seconds = round(time.perf_counter() - began, 6)
        return {"model": self._inner.name, "replies": [_to_record(reply) for reply in replies], "seconds": seconds}


def _to_record(reply: Reply) -> dict[str, Any]:
    """A reply without its place, which the line gives; `failure` only where there is one."""
    record = asdict(reply)
    del record["source"]
    return {name: value for name, value in record.items() if value or name != "failure"}


def hash_schema(schema: dict[str, Any]) -> str:
    """SHA-256 of a JSON schema."""
    return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()
