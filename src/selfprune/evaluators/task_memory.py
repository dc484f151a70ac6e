"""The memory that lm-eval's requests take besides the weights."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from selfprune.models.blocks.walk import N_LOGITS_AT_ONCE

if TYPE_CHECKING:
    from lm_eval.api.task import Task


def logit_bytes(batch_size: int, vocab_size: int, n_positions: int | None, bytes_per_weight: int) -> int:
    """The most memory that the logits of scored tokens take at once, with their copy in fp32 and its softmax.

    Args:
        batch_size: requests per forward pass.
        vocab_size: of the model.
        n_positions: tokens of its longest input; None where it does not say.
        bytes_per_weight: of a logit.
    """
    n_logits = max(vocab_size, N_LOGITS_AT_ONCE)
    if n_positions is not None:
        n_logits = min(n_logits, batch_size * n_positions * vocab_size)
    return n_logits * (bytes_per_weight + 8)


def cache_bytes(
    tasks: Iterable[tuple["Task", Sequence[int]]], batch_size: int, text_config: Any, n_positions: int, bytes_per_weight: int
) -> int:
    """The most memory that keys and values of all tokens take while tasks let the model write; 0 where none does.

    Args:
        tasks: with the tokens of every request.
        batch_size: requests per forward pass.
        text_config: of the model; layers that keep less than every token are counted as if they kept it.
        n_positions: tokens of its longest input.
        bytes_per_weight: of a key or a value.
    """
    n_heads = text_config.num_attention_heads
    n_kept_heads = getattr(text_config, "num_key_value_heads", None) or n_heads
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // n_heads
    of_token = 2 * text_config.num_hidden_layers * n_kept_heads * head_dim * bytes_per_weight
    return max((n * min(batch_size, n_requests) * of_token for n, n_requests in _generated(tasks, n_positions)), default=0)


def _generated(tasks: Iterable[tuple["Task", Sequence[int]]], n_positions: int) -> Iterable[tuple[int, int]]:
    """Of each task that lets the model write: the tokens of its longest prompt and answer, and how many requests it has."""
    for task, lengths in tasks:
        if task.OUTPUT_TYPE == "generate_until":
            written = n_written(task)
            yield max(min(length + n, n_positions) for length, n in zip(lengths, written, strict=True)), len(lengths)


def n_written(task: "Task") -> list[int]:
    """How many tokens every request of a task lets the model write.

    Args:
        task: of the kind `generate_until`.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    return [normalize_gen_kwargs(instance.args[1])["max_gen_toks"] for instance in task.instances]
