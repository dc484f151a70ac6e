"""Another model of this machine proposes: any causal language model in a folder or on the hub.

Limits: it is held beside the model that is pruned; a model too large for that is better served by `openai_compatible`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from selfprune.errors import ConfigError, SelfpruneError
from selfprune.language_models.base import LanguageModel, SampledModelConfig
from selfprune.models.model_config import DType, ModelConfig
from selfprune.storage.path_fields import path_field


@dataclass
class LocalLanguageModel(SampledModelConfig):
    """A model that is loaded when it is first asked.

    Attributes:
        path: a local folder, or a hub id such as `Qwen/Qwen2.5-7B-Instruct`.
        dtype: number format of the weights; AUTO takes the checkpoint's.
        device: `auto` (a GPU if there is one), or any torch device such as `cpu` or `cuda:1`.
        trust_remote_code: run the modelling code that a checkpoint brings along.
        revision: branch, tag or commit on the hub.
    """

    path: str = path_field(or_hub=True)
    dtype: DType = DType.AUTO
    device: str = "auto"
    trust_remote_code: bool = False
    revision: str | None = None

    def check(self) -> None:
        """Looks for the model, and for the memory that it takes alone.

        Raises:
            ConfigError: when no path is given.
            ModelError: when the model is missing, out of reach or too large.
        """
        # Imported here because it takes seconds, which a mistake in the config should not wait for.
        from selfprune.models.loading import preflight_memory

        with _own_options():
            preflight_memory(self._model_config())

    def build(self, model: Any, tokenizer: Any) -> LanguageModel:
        """The language model around a model of its own; the one that is pruned is left alone.

        Raises:
            ConfigError: when no path is given.
            ModelError: when the model is missing, out of reach, broken or too large.
            LanguageModelError: when its tokenizer cannot serve constrained decoding.
        """
        # Imported here for the same reason.
        from selfprune.language_models.sampler import Sampler
        from selfprune.models.loading import load_model

        with _own_options():
            own = load_model(self._model_config())
        return Sampler(own.model, own.tokenizer, self.temperature, self.max_reply_tokens)

    def _model_config(self) -> ModelConfig:
        if not self.path.strip():
            raise ConfigError(
                "language_model.path must be a folder with a model or a hub id, got an empty text; give it, or choose "
                "language_model=self for the model that is pruned"
            )
        return ModelConfig(self.path, self.dtype, self.device, trust_remote_code=self.trust_remote_code, revision=self.revision)


@contextmanager
def _own_options() -> Iterator[None]:
    """Complaints about a model name `model`'s options; here they are those of `language_model`."""
    try:
        yield
    except SelfpruneError as error:
        raise type(error)(
            re.sub(r"(?<![\w.])model\.(?=path|dtype|device|revision|trust)", "language_model.", str(error))
        ) from error
