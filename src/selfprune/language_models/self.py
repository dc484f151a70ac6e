"""The model under pruning proposes its own allocations (Self-Pruner, arXiv 2502.14413)."""

from dataclasses import dataclass
from typing import Any

from selfprune.language_models.base import LanguageModel, SampledModelConfig


@dataclass
class SelfLanguageModel(SampledModelConfig):
    """The very model that is being pruned, held once; it answers with its dense weights."""

    def build(self, model: Any, tokenizer: Any) -> LanguageModel:
        """The language model around a loaded model, which must be in eval mode."""
        # Imported here because llguidance is needed only by runs that ask.
        from selfprune.language_models.sampler import Sampler

        return Sampler(model, tokenizer, self.temperature, self.max_reply_tokens)
