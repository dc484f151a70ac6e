"""The model under pruning answers as it was before: a search may ask it about its own pruning."""

from collections.abc import Sequence
from typing import Any

from selfprune.language_models.base import LanguageModel, Reply
from selfprune.levels.level_store import LevelStore


class DenseModelAnswers:
    """The model under pruning as a language model: its dense weights are put back before it is asked.

    Args:
        inner: asks the model as it stands.
        store: of the same model.

    Attributes:
        name: of the model.
    """

    def __init__(self, inner: LanguageModel, store: LevelStore) -> None:
        self.inner, self.store, self.name = inner, store, inner.name

    def complete(self, prompt: str, schema: dict[str, Any], n: int, seed: int) -> list[Reply]:
        """Replies of the dense model."""
        self.store.restore()
        return self.inner.complete(prompt, schema, n, seed)

    def score(self, prompt: str, options: Sequence[str]) -> list[Reply]:
        """The options as the dense model scores them."""
        self.store.restore()
        return self.inner.score(prompt, options)
