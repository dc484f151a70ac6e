"""Walks the blocks of a model once, holding one block's activations at a time, and gathers statistics on the way.

Shape suffixes: N sequences, T tokens, D hidden width, O out, I in.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from selfprune.allocation import Allocation, Unit
from selfprune.errors import ModelError, PruningError
from selfprune.models import LoadedModel
from selfprune.pruners.base import Pruner
from selfprune.pruners.statistics import Statistics
from selfprune.units import n_row_groups, weight_view

logger = logging.getLogger(__name__)


@dataclass
class BlockVisit:
    """One block of the walk, with the inputs that reach it.

    Attributes:
        index: position of the block.
        units: its units.
        forward: runs the block on all inputs; the last run's outputs feed the next block.
    """

    index: int
    units: list[Unit]
    forward: Callable[[], None]


@torch.no_grad()
def walk_blocks(loaded: LoadedModel, windows_NT: Tensor, batch_size: int) -> Iterator[BlockVisit]:
    """Visits the blocks in order; each visitor must call `visit.forward` at least once, last after any change to the block.

    The keyword arguments of every block (masks, rotary embeddings, which may differ between blocks as in Gemma) are taken
    from a real forward pass, so that nothing about an architecture is assumed here.

    Args:
        loaded: the model.
        windows_NT: token windows of equal length.
        batch_size: windows per forward pass.

    Raises:
        ModelError: when a block does not take and return hidden states.
    """
    batches = torch.split(windows_NT.to(loaded.device), batch_size)
    calls = {len(batch): _record_calls(loaded, batch) for batch in {len(batch): batch for batch in batches}.values()}
    _check_token_independence(loaded, batches[0], calls[len(batches[0])])
    hidden = [_embed(loaded, batch) for batch in batches]

    for index, block in enumerate(loaded.blocks):

        def forward(index: int = index, block: nn.Module = block, inputs: tuple[Tensor, ...] = tuple(hidden)) -> None:
            for i, hidden_NTD in enumerate(inputs):
                arguments, keywords = calls[len(hidden_NTD)][index]
                hidden[i] = first_tensor(block(hidden_NTD, *arguments, **keywords))

        yield BlockVisit(index, [unit for unit in loaded.units if unit.block == index], forward)


def first_tensor(output: Any) -> Tensor:
    """The hidden states that a block returned: a tensor, or the first of a tuple."""
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor) or hidden.dim() != 3:
        raise ModelError(
            f"a decoder block must return hidden states [N, T, D], got {type(hidden).__name__}; this architecture is "
            f"not supported"
        )
    return hidden


class _StopForwardError(Exception):
    """Ends a forward pass once the first block's input is known."""


def _embed(loaded: LoadedModel, batch_NT: Tensor) -> Tensor:
    caught: list[Tensor] = []

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        caught.append(arguments[0])
        raise _StopForwardError

    handle = loaded.blocks[0].register_forward_pre_hook(stop)
    try:
        loaded.model(input_ids=batch_NT, use_cache=False)
    except _StopForwardError:
        pass
    finally:
        handle.remove()
    return caught[0]


def _record_calls(loaded: LoadedModel, batch_NT: Tensor) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls.append((arguments[1:], keywords))

    with ExitStack() as stack:
        for block in loaded.blocks:
            stack.callback(block.register_forward_pre_hook(record, with_kwargs=True).remove)
        loaded.model(input_ids=batch_NT, use_cache=False)
    return calls


def _check_token_independence(loaded: LoadedModel, batch_NT: Tensor, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
    """Checks that blocks get the same masks and rotary embeddings whatever the tokens, since one batch's serve for all."""
    others = _record_calls(loaded, batch_NT.roll(1, dims=1))
    for index, (call, other) in enumerate(zip(calls, others, strict=True)):
        for ours, theirs in zip(tree_leaves(call), tree_leaves(other), strict=True):
            if isinstance(ours, Tensor) and not torch.equal(ours, theirs):
                raise ModelError(
                    f"block {index} of {type(loaded.model).__name__} takes arguments that depend on the tokens (as per-layer "
                    f"embeddings do) beside the hidden states; selfprune cannot walk this architecture block by block"
                )


class _ExpertInputs(TorchFunctionMode):
    """Sees the inputs of fused experts: linear maps whose weight is a slice of a three-dimensional parameter."""

    def __init__(self, watched: list[tuple[Tensor, Statistics]]) -> None:
        super().__init__()
        self.watched = watched
        self.n_seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            for parameter_EOI, statistics in self.watched:
                offset = args[1].data_ptr() - parameter_EOI.data_ptr()
                if 0 <= offset < parameter_EOI.numel() * parameter_EOI.element_size():
                    self.n_seen += 1
                    statistics.update(args[0], offset // (parameter_EOI.stride(0) * parameter_EOI.element_size()))
        return func(*args, **(kwargs or {}))


@contextmanager
def gather(loaded: LoadedModel, statistics: dict[str, Statistics]) -> Iterator[None]:
    """While open, every forward pass feeds the inputs of the named units to their statistics.

    Raises:
        ModelError: at the end, when fused experts ran in a way that hides their inputs.
    """
    experts: list[tuple[Tensor, Statistics]] = []
    with ExitStack() as stack:
        for name, accumulator in statistics.items():
            owner = _module_or_parameter(loaded.model, name)
            if isinstance(owner, nn.Module):

                def update(_: nn.Module, arguments: tuple[Tensor, ...], accumulator: Statistics = accumulator) -> None:
                    accumulator.update(arguments[0])

                stack.callback(owner.register_forward_pre_hook(update).remove)
            else:
                experts.append((owner, accumulator))
        seen = stack.enter_context(_ExpertInputs(experts)) if experts else None
        yield
    if seen is not None and seen.n_seen == 0:
        raise ModelError(
            f"the inputs of the fused experts {', '.join(statistics)} could not be seen: their layer does not use "
            f"torch.nn.functional.linear; load the model with experts_implementation='eager'"
        )


def _module_or_parameter(model: nn.Module, name: str) -> nn.Module | Tensor:
    parent, _, leaf = name.rpartition(".")
    owner: nn.Module | Tensor = getattr(model.get_submodule(parent), leaf)
    return owner


def empty_statistics(loaded: LoadedModel, units: list[Unit], pruner: Pruner, n_sequences: int) -> dict[str, Statistics]:
    """Accumulators for these units, as the pruner wants them."""
    return {
        unit.name: pruner.statistics(n_row_groups(loaded.model, unit), weight_view(loaded.model, unit).shape[1], n_sequences)
        for unit in units
    }


@torch.no_grad()
def calibrate(loaded: LoadedModel, windows_NT: Tensor, pruner: Pruner, batch_size: int) -> dict[str, Statistics]:
    """Statistics of every unit of the model as it stands.

    Args:
        loaded: the model, dense or pruned.
        windows_NT: calibration windows.
        pruner: says what is gathered.
        batch_size: windows per forward pass.

    Returns:
        unit name -> statistics.
    """
    statistics: dict[str, Statistics] = {}
    for visit in walk_blocks(loaded, windows_NT, batch_size):
        of_block = empty_statistics(loaded, visit.units, pruner, len(windows_NT))
        with gather(loaded, of_block):
            visit.forward()
        statistics |= of_block
    return statistics


@torch.no_grad()
def prune_in_place(
    loaded: LoadedModel, windows_NT: Tensor, pruner: Pruner, allocation: Allocation, batch_size: int
) -> dict[str, int]:
    """Prunes block by block, each on the outputs of the pruned blocks before it.

    Args:
        loaded: the dense model; its weights are changed.
        windows_NT: calibration windows.
        pruner: decides which weights go.
        allocation: unit name -> weights to remove.
        batch_size: windows per forward pass.

    Returns:
        unit name -> weights removed, equal to the allocation.

    Raises:
        PruningError: when a unit cannot be pruned; the message names it.
    """
    removed: dict[str, int] = {}
    for visit in walk_blocks(loaded, windows_NT, batch_size):
        statistics = empty_statistics(loaded, visit.units, pruner, len(windows_NT))
        with gather(loaded, statistics):
            visit.forward()
        for unit in visit.units:
            weight_OI = weight_view(loaded.model, unit)
            try:
                pruned = pruner.prune(weight_OI, statistics[unit.name], allocation[unit.name])
            except PruningError as error:
                raise PruningError(f"{unit.name}: {error}") from error
            kept_OI = weight_OI if pruned.weight_OI is None else pruned.weight_OI
            weight_OI.copy_(torch.where(pruned.mask_OI, kept_OI, 0))
            removed[unit.name] = int((~pruned.mask_OI).sum())
        visit.forward()
        logger.debug("pruned block %d", visit.index)
    return removed
