"""Catches what a model hands to its blocks, so that they can be run one at a time outside of its own forward pass.

Shape suffixes: N sequences, T tokens, D hidden width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from selfprune.errors import ModelError

N_LOGITS_TOGETHER = 2**23
"""Logits of several sequences held together; more take memory and save no time."""


@dataclass(frozen=True)
class BlockCalls:
    """What reaches the blocks of a model before any of them has run.

    Attributes:
        hidden_NTD: the hidden states that enter the first block.
        calls: per block its further arguments and keywords (masks, rotary embeddings, which may differ between blocks).
    """

    hidden_NTD: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def run(self, index: int, block: nn.Module, hidden_NTD: Tensor) -> Tensor:
        """The hidden states that a block makes of others."""
        arguments, keywords = self.calls[index]
        return first_tensor(block(hidden_NTD, *arguments, **keywords))


class StopForwardError(Exception):
    """Ends a forward pass once all that is wanted of it is known."""


class _Handed(Tensor):
    """Hidden states in place of a block's output: models take it as it is, its first item (BLOOM), or two of which one is None.

    The second is attention weights that nobody asked for, as in Bamba; where it is more, `check_by_running` sees it.
    """

    # whatever is computed with it is a plain tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Tensor:
        return self if isinstance(index, int) and index == 0 else super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        # else the sequences of a batch would be taken for several outputs, in silence if there are as many
        return iter((self, None))


def capture_calls(model: nn.Module, blocks: Sequence[nn.Module], batch_NT: Tensor) -> BlockCalls:
    """Lets the model prepare everything for its blocks, which are not run.

    Args:
        model: the causal language model.
        blocks: its decoder blocks in order.
        batch_NT: tokens.

    Raises:
        ModelError: when the model gives its blocks no hidden states, or wants more of them than hidden states.
    """
    caught: list[tuple[Any, ...]] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not arguments:
            raise ModelError(
                f"{type(model).__name__} calls its blocks ({type(block).__name__}) with keywords alone ({', '.join(keywords)}), "
                "where selfprune expects the hidden states first; it cannot prune this architecture"
            )
        caught.append(arguments)
        calls.append((arguments[1:], keywords))
        if len(calls) == len(blocks):
            raise StopForwardError

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(bypassed(block))
            stack.callback(block.register_forward_pre_hook(record, with_kwargs=True).remove)
        stack.enter_context(_naming(model, blocks))
        with suppress(StopForwardError):
            model(input_ids=batch_NT, use_cache=False)
    return BlockCalls(caught[0][0], calls)


def logits_from(model: nn.Module, blocks: Sequence[nn.Module], batch_NT: Tensor, hidden_NTD: Tensor) -> Tensor:
    """The logits [N, T, V] that the model makes of the last block's hidden states; gradients flow back to them."""
    with ExitStack() as stack:
        for block in blocks[:-1]:
            stack.enter_context(bypassed(block))
        stack.enter_context(bypassed(blocks[-1], hidden_NTD))
        logits_NTV: Tensor = model(input_ids=batch_NT, use_cache=False).logits
    return logits_NTV


def sequences_at_once(n_tokens: int, vocab_size: int) -> int:
    """Of how many sequences the logits are held together."""
    return max(1, N_LOGITS_TOGETHER // (n_tokens * vocab_size))


def logits_of_few(
    model: nn.Module, blocks: Sequence[nn.Module], batch_NT: Tensor, hidden_NTD: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Which sequences, and their logits [N, T, V] as of `logits_from`: many where the vocabulary is small, else one by one."""
    config: Any = model.config
    n_at_once = sequences_at_once(batch_NT.shape[1], config.get_text_config().vocab_size)
    for start in range(0, len(batch_NT), n_at_once):
        few = slice(start, start + n_at_once)
        yield few, logits_from(model, blocks, batch_NT[few], hidden_NTD[few])


@contextmanager
def _naming(model: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "to unpack" not in str(error):
            raise
        raise ModelError(
            f"{type(model).__name__} takes more than hidden states from each of its blocks ({type(blocks[0]).__name__}), such as "
            "attention weights or recurrent states; selfprune runs blocks one at a time and hands nothing but hidden states from "
            "one to the next, so it cannot prune this architecture"
        ) from error


def same_arguments(entry: BlockCalls, other: BlockCalls) -> bool:
    """Whether blocks get the same masks and rotary embeddings for other tokens, so that one batch's serve for all.

    Where they do not, as with per-layer embeddings, every batch must keep its own.
    """
    calls = zip(tree_leaves(entry.calls), tree_leaves(other.calls), strict=True)
    return all(not isinstance(ours, Tensor) or ours.equal(theirs) for ours, theirs in calls)


def first_tensor(output: Any) -> Tensor:
    """The hidden states that a block returned: a tensor, or the first of several.

    Raises:
        ModelError: when there are none.
    """
    hidden = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(hidden, Tensor) or hidden.dim() != 3:
        found = f"a tensor of shape {list(hidden.shape)}" if isinstance(hidden, Tensor) else type(hidden).__name__
        raise ModelError(
            f"a decoder block must return one stream of hidden states [sequences, tokens, width], got {found}; selfprune cannot "
            "prune this architecture"
        )
    return hidden


@contextmanager
def bypassed(block: nn.Module, instead: Tensor | None = None) -> Iterator[None]:
    """While open, the block returns its input, or `instead`."""
    own = vars(block).get("forward")
    block.forward = lambda hidden_NTD, *_, **__: (hidden_NTD if instead is None else instead).as_subclass(_Handed)
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own
