"""What a language model does while it is timed: it reads prompts, or writes tokens after them, or both.

Shape suffixes: N sequences, T tokens.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

from selfprune.allocations.latency_table import Circumstances
from selfprune.errors import ConfigError
from selfprune.timing.kernels import wait_for


class Mode(str, Enum):
    """What is timed.

    PREFILL: prompts are read. DECODE: one more token of each is written. MIX: prompts are read, and `n_new` tokens written.
    """

    PREFILL = "PREFILL"
    DECODE = "DECODE"
    MIX = "MIX"


@dataclass
class Workload:
    """What a model does.

    Attributes:
        mode: what counts.
        batch_size: prompts at once.
        context: tokens of each prompt.
        n_new: for MIX, tokens that are written after it.
    """

    mode: Mode = Mode.PREFILL
    batch_size: int = 1
    context: int = 256
    n_new: int = 64

    def __post_init__(self) -> None:
        for name in ("batch_size", "context", "n_new"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __str__(self) -> str:
        """In words."""
        writing = {Mode.PREFILL: "reading", Mode.DECODE: "writing a token after", Mode.MIX: f"writing {self.n_new} tokens after"}
        return f"{writing[self.mode]} {self.batch_size} x {self.context} tokens"

    def as_dict(self) -> Circumstances:
        """For a latency table."""
        return {"mode": self.mode.value, "batch_size": self.batch_size, "context": self.context, "n_new": self.n_new}

    @property
    def n_tokens(self) -> int:
        """Tokens that are read or written."""
        return self.batch_size * {Mode.PREFILL: self.context, Mode.DECODE: 1, Mode.MIX: self.context + self.n_new}[self.mode]

    @property
    def n_times(self) -> tuple[int, int]:
        """How often prompts are read, and tokens written."""
        return {Mode.PREFILL: (1, 0), Mode.DECODE: (0, 1), Mode.MIX: (1, self.n_new)}[self.mode]


class Timed:
    """A model that works, and how long it takes.

    Args:
        model: any causal language model.
        workload: what it does.
        watched: name -> module whose seconds are wanted, too.

    Attributes:
        samples: name -> the seconds of the workload in every repeat; that of the whole model is "".
    """

    def __init__(self, model: Any, workload: Workload, watched: Mapping[str, nn.Module] | None = None) -> None:
        self._model, self._workload, self._watched = model, workload, dict(watched or {})
        self._device = next(model.parameters()).device
        n_tokens = model.config.get_text_config().vocab_size
        shape = workload.batch_size, workload.context
        self._prompt_NT = torch.randint(n_tokens, shape, generator=torch.Generator().manual_seed(0)).to(self._device)
        self.samples: dict[str, list[float]] = {name: [] for name in ("", *self._watched)}

    def seconds(self, name: str = "") -> float:
        """The median of the repeats."""
        return statistics.median(self.samples[name])

    @torch.no_grad()
    def repeat(self, is_counted: bool = True) -> None:
        """Works once; what warms up is not counted."""
        n_read, n_written = self._workload.n_times
        read, cache = self._clocked(lambda: self._model(input_ids=self._prompt_NT, use_cache=True, logits_to_keep=1))
        written = dict.fromkeys(read, 0.0)
        if n_written:
            token_N1 = self._prompt_NT[:, :1]
            written, _ = self._clocked(lambda: self._model(input_ids=token_N1, past_key_values=cache, use_cache=True))
        if is_counted:
            for name, samples in self.samples.items():
                samples.append(n_read * read[name] + n_written * written[name])

    def _clocked(self, step: Callable[[], Any]) -> tuple[dict[str, float], Any]:
        """Seconds of the whole and of what is watched, and the cache after it."""
        seconds, began = dict.fromkeys(self.samples, 0.0), {}

        def start(name: str) -> Callable[..., None]:
            def hook(*_: Any, **__: Any) -> None:
                wait_for(self._device)
                began[name] = time.perf_counter()

            return hook

        def stop(name: str) -> Callable[..., None]:
            def hook(*_: Any, **__: Any) -> None:
                wait_for(self._device)
                seconds[name] += time.perf_counter() - began[name]

            return hook

        with ExitStack() as stack:
            for name, module in self._watched.items():
                stack.callback(module.register_forward_pre_hook(start(name), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(stop(name), with_kwargs=True).remove)
            start("")()
            output = step()
            stop("")()
        return seconds, output.past_key_values
