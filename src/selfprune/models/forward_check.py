"""Checks of a model before it is used: that its blocks run as they are walked.

Shape suffixes: N sequences, T tokens, V vocabulary.
"""

import logging
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selfprune.errors import ModelError
from selfprune.models.blocks.calls import capture_calls, first_tensor, logits_from
from selfprune.models.blocks.residency import resident
from selfprune.models.weight_checks import overflow

logger = logging.getLogger(__name__)

N_PROBE_TOKENS = 8


def check_skeleton(skeleton: Any, blocks: list[nn.Module]) -> None:
    """Checks what can be told before any weight is read: that blocks are given hidden states and asked for nothing else.

    Args:
        skeleton: the model without its weights.
        blocks: its decoder blocks.

    Raises:
        ModelError: when it is otherwise.
    """
    try:
        capture_calls(skeleton, blocks, torch.zeros(2, N_PROBE_TOKENS, dtype=torch.long, device="meta"))
    except ModelError:
        raise
    except Exception as error:  # many models look at their tokens, of which there are none yet
        logger.debug("%s cannot be tried without its weights: %s", type(skeleton).__name__, error)


def check_entry(model: Any, path: str, blocks: list[nn.Module], device: torch.device) -> None:
    """Checks, with the first block alone, that each is called once.

    Args:
        model: the loaded model.
        path: the path of its blocks' list.
        blocks: its decoder blocks.
        device: where its embeddings lie.

    Raises:
        ModelError: when it is otherwise, or when the block does not run.
    """
    tokens_NT = _probe(model, device)
    entry = capture_calls(model, blocks, tokens_NT)
    if len(entry.calls) != len(blocks):
        raise ModelError(
            f"the blocks {path} of {type(model).__name__} should run once each, but {len(entry.calls)} of {len(blocks)} ran; it "
            "cannot be pruned"
        )
    if entry.hidden_NTD.shape[:2] != tokens_NT.shape:
        raise ModelError(
            f"the blocks {path} of {type(model).__name__} should be given one stream of hidden states [sequences, tokens, "
            f"width], but {list(tokens_NT.shape)} tokens became {list(entry.hidden_NTD.shape)}; selfprune cannot prune this "
            "architecture"
        )
    with resident(blocks[0]), torch.no_grad(), _telling_own_failure(model):
        entry.run(0, blocks[0], entry.hidden_NTD)


def check_by_running(model: Any, path: str, blocks: list[nn.Module], device: torch.device) -> None:
    """Checks on two sequences with one prefix that blocks run once, in order, each on what the last one gave, and causally.

    Args:
        model: the loaded model.
        path: the path of its blocks' list.
        blocks: its decoder blocks.
        device: where its weights lie.

    Raises:
        ModelError: when the model does not run, its blocks run otherwise, the logits are not finite, or a token sees a later one.
    """
    tokens_NT = _probe(model, device)
    with _watched(blocks) as (order, breaks, given), torch.no_grad(), _telling_own_failure(model):
        logits_NTV = model(input_ids=tokens_NT, attention_mask=torch.ones_like(tokens_NT), use_cache=False).logits
    if order != list(range(len(blocks))):
        raise ModelError(
            f"the blocks {path} of {type(model).__name__} should run once each and in order, but ran as {order}; it cannot "
            "be pruned"
        )
    if breaks:
        raise ModelError(
            f"{type(model).__name__} changes the hidden states between its blocks {path}.{breaks[0] - 1} and {path}.{breaks[0]} "
            f"({type(blocks[0]).__name__}); selfprune hands them from one block to the next as they are, so it cannot prune this "
            "architecture"
        )
    if not logits_NTV.isfinite().all():
        dtype = logits_NTV.dtype
        cause = (
            "its weights are finite, but too large or broken: fetch the checkpoint again"
            if dtype == torch.float32
            else f"what it computes on the way overflows, since {overflow(dtype)}"
        )
        raise ModelError(f"{type(model).__name__} gives NaN or infinite logits as loaded; {cause}")
    prefix_NTV = logits_NTV[:, :-1].float()
    if not _are_close(prefix_NTV[0], prefix_NTV[1], logits_NTV.dtype):
        raise ModelError(
            f"{type(model).__name__} is not a causal language model: its early logits depend on a later token; give a "
            "decoder-only model"
        )
    with torch.no_grad():
        check_entry(model, path, blocks, device)
        _check_alone(model, path, blocks, tokens_NT, given)
        again_NTV = _attempted(lambda: logits_from(model, blocks, tokens_NT, given[-1]))
    if not _are_close(again_NTV, logits_NTV):
        raise ModelError(
            f"{type(model).__name__} makes its logits of more than the hidden states of the last block {path}.{len(blocks) - 1}; "
            "selfprune scores models by these alone, so it cannot prune this architecture"
        )


def _check_alone(model: Any, path: str, blocks: list[nn.Module], tokens_NT: Tensor, given: list[Tensor]) -> None:
    """Checks that every block gives what it gave when the model ran, though none of those before it has run, as gradients do."""
    entry = capture_calls(model, blocks, tokens_NT)
    for index in reversed(range(len(blocks))):
        alone_NTD = _attempted(lambda: entry.run(index, blocks[index], given[index]))  # noqa: B023
        if not _are_close(alone_NTD, given[index + 1]):
            raise ModelError(
                f"the block {path}.{index} of {type(model).__name__} needs more than hidden states of the blocks before it, such "
                "as keys and values that they share, or a state; selfprune runs blocks one at a time, so it cannot prune this "
                "architecture"
            )


@contextmanager
def _watched(blocks: list[nn.Module]) -> Iterator[tuple[list[int], list[int], list[Tensor]]]:
    """While open, notes the order in which blocks run, which get other hidden states than the last one gave, and all of these.

    They are what the first block gets, and then what each one gives.
    """
    order: list[int] = []
    breaks: list[int] = []
    given: list[Tensor] = []

    def before(index: int, arguments: tuple[Any, ...]) -> None:
        order.append(index)
        if arguments and not given:
            given.append(arguments[0].clone())
        elif arguments and not _are_same(given[-1], arguments[0]):
            breaks.append(index)

    def after(output: Any) -> None:
        given.append(first_tensor(output).clone())

    hooks = [b.register_forward_pre_hook(lambda _, arguments, i=i: before(i, arguments)) for i, b in enumerate(blocks)]
    hooks += [block.register_forward_hook(lambda _, __, output: after(output)) for block in blocks]
    try:
        yield order, breaks, given
    finally:
        for hook in hooks:
            hook.remove()


def _attempted(run: Callable[[], Tensor]) -> Tensor:
    """What a model gives; nothing where it misses something, of which it may make any error."""
    try:
        return run()
    except Exception:
        return torch.empty(0)


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Whether tensors hold the same numbers, of which those that are none count as the same."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _are_close(one: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether tensors hold the same numbers up to the rounding of a format, as where masks or kernels were chosen otherwise."""
    if one.shape != other.shape:
        return False
    difference, largest = (each.float().abs().max() for each in (one - other, other))
    return bool(difference <= 8 * torch.finfo(dtype or other.dtype).eps * largest)


@contextmanager
def _telling_own_failure(model: Any) -> Iterator[None]:
    """While open, what the model raises by itself is told as that."""
    try:
        yield
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # modelling code raises anything
        said = f"{type(error).__name__}: {textwrap.shorten(str(error), 300)}"
        raise ModelError(
            f"{type(model).__name__} itself fails on {N_PROBE_TOKENS} tokens ({said}), before anything is done to it: its "
            "config.json does not fit its architecture, or it needs more than tokens and a mask; selfprune cannot prune it"
        ) from error


def _probe(model: Any, device: torch.device) -> Tensor:
    """Two sequences with one prefix."""
    tokens_NT: Tensor = torch.arange(N_PROBE_TOKENS, device=device).repeat(2, 1) % model.config.get_text_config().vocab_size
    tokens_NT[1, -1] = 0
    return tokens_NT
