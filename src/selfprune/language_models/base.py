"""The language model contract."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Reply:
    """One reply of a language model.

    Attributes:
        text: the reply.
        logprob: sum of the log-probabilities of its tokens under the constraint, in nats; None where unknown.
        n_prompt_tokens: tokens of the prompt.
        n_reply_tokens: tokens of the reply.
    """

    text: str
    logprob: float | None
    n_prompt_tokens: int
    n_reply_tokens: int


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
            LanguageModelError: when the model cannot be reached.
        """
        ...


class LanguageModelConfig(ABC):
    """The settings of a language model; a dataclass that is its own config schema."""

    @abstractmethod
    def build(self, model: Any, tokenizer: Any) -> LanguageModel:
        """The language model.

        Args:
            model: the model that is being pruned, for those that ask it.
            tokenizer: its tokenizer.

        Raises:
            LanguageModelError: when it cannot be reached or cannot serve.
        """
