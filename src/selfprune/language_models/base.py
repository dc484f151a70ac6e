"""The language model contract."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from selfprune.errors import ConfigError


@dataclass(frozen=True)
class Reply:
    """One reply of a language model.

    Attributes:
        text: the reply.
        logprob: sum of the log-probabilities of its tokens under the constraint, in nats; None where unknown.
        n_prompt_tokens: tokens of the prompt; of replies that share one reading of it, only the first has them.
        n_reply_tokens: tokens of the reply.
        failure: why there is no text, where a model that can be asked did not answer; empty otherwise.
        source: the call in the record of the run, and the place of the reply in it; None before it is recorded.
    """

    text: str
    logprob: float | None
    n_prompt_tokens: int
    n_reply_tokens: int
    failure: str = ""
    source: tuple[int, int] | None = None


class LanguageModel(Protocol):
    """Completes prompts, under a JSON schema where it can.

    Example:
        >>> replies = language_model.complete("Name a number as JSON: ", {"type": "integer"}, n=2, seed=0)
    """

    name: str

    def complete(self, prompt: str, schema: dict[str, Any], n: int, seed: int) -> list[Reply]:
        """`n` replies to one prompt.

        Args:
            prompt: the text to continue.
            schema: a JSON schema that the replies should meet; a model without constrained decoding may break it.
            n: how many replies, sampled in one batch.
            seed: fixes the replies of a local model.

        Raises:
            LanguageModelError: when the model cannot serve at all; a single answer that fails is a reply with a failure.
        """
        ...

    def score(self, prompt: str, options: Sequence[str]) -> list[Reply]:
        """Every option as a reply to one prompt, with its log-probability as far as the model tells; in their order.

        Args:
            prompt: the text to continue.
            options: the texts that may continue it, not empty.

        Raises:
            LanguageModelError: when the model cannot serve at all.
        """
        ...


@runtime_checkable
class Resumable(Protocol):
    """A language model for which it matters what a run had heard before it was broken off."""

    def recall(self, replies: Sequence[Reply]) -> None:
        """Takes note of the replies that a resumed run reads from its record.

        Args:
            replies: of all recorded calls, in their order.
        """
        ...


class LanguageModelConfig(ABC):
    """The settings of a language model; a dataclass that is its own config schema."""

    def check(self) -> None:
        """Refuses, before a run begins, what would keep the model from serving.

        Raises:
            ConfigError: when a setting is missing.
            ModelError: when a model of its own is missing, out of reach or too large.
            LanguageModelError: when it cannot be reached or cannot serve.
        """
        return

    @abstractmethod
    def build(self, model: Any, tokenizer: Any) -> LanguageModel:
        """The language model.

        Args:
            model: the model that is being pruned, for those that ask it.
            tokenizer: its tokenizer.

        Raises:
            LanguageModelError: when it cannot be reached or cannot serve.
        """


@dataclass
class SampledModelConfig(LanguageModelConfig):
    """The settings of every model that is sampled here, under a grammar.

    Attributes:
        temperature: divides the logits before sampling, above 0.
        max_reply_tokens: a reply is cut off after so many tokens.
    """

    temperature: float = 1.0
    max_reply_tokens: int = 400

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature <= 100.0:
            raise ConfigError(
                f"language_model.temperature must lie in (0, 100], got {self.temperature}; 1.0 samples as the model was trained"
            )
        if self.max_reply_tokens < 1:
            raise ConfigError(
                f"language_model.max_reply_tokens must be at least 1, got {self.max_reply_tokens}; 400 serve 80 blocks"
            )
