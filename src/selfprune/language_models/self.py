"""The model under pruning proposes its own allocations (Self-Pruner, arXiv 2502.14413)."""

from dataclasses import dataclass
from typing import Any

from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel, LanguageModelConfig


@dataclass
class SelfLanguageModel(LanguageModelConfig):
    """The very model that is being pruned, held once.

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

    def build(self, model: Any, tokenizer: Any) -> LanguageModel:
        """The language model around a loaded model, which must be in eval mode."""
        # Imported here because llguidance is needed only by runs that ask.
        from selfprune.language_models.local import LocalLanguageModel

        return LocalLanguageModel(model, tokenizer, self.temperature, self.max_reply_tokens)
