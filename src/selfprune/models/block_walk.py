"""Walks the blocks of a model once, with one block's weights and activations at hand at a time.

Shape suffixes: N sequences, T tokens, D hidden width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.allocations.allocation import Unit
from selfprune.models.block_calls import Entry, enter, resident
from selfprune.models.loading import LoadedModel


@dataclass
class BlockVisit:
    """One block of the walk, with the inputs that reach it.

    Attributes:
        index: position of the block.
        units: its units.
        forward: runs the block on all inputs; the last run's outputs feed the next block.
        hidden: per batch the hidden states [N, T, D] that the last run gave, or the inputs before the first.
    """

    index: int
    units: list[Unit]
    forward: Callable[[], None]
    hidden: list[Tensor]


@torch.no_grad()
def walk_blocks(
    loaded: LoadedModel, windows_NT: Tensor, batch_size: int, start: int = 0, hidden: list[Tensor] | None = None
) -> Iterator[BlockVisit]:
    """Visits the blocks in order; each visitor must call `visit.forward` at least once, last after any change to the block.

    What a block takes besides hidden states (masks, rotary embeddings, which may differ between blocks as in Gemma) comes from
    the model itself, so that nothing about an architecture is assumed here. Weights that lie on disk come and go with the visit.

    Args:
        loaded: the model.
        windows_NT: token windows of equal length.
        batch_size: windows per forward pass.
        start: block to begin with, for a walk that was broken off.
        hidden: per batch the hidden states that enter that block.

    Raises:
        ModelError: when a block does not take and return hidden states.
    """
    batches = torch.split(windows_NT.to(loaded.device), batch_size)
    entries: dict[int, Entry] = {}
    current = []
    for i, batch_NT in enumerate(batches):
        entry = enter(loaded.model, loaded.blocks, batch_NT)
        entries.setdefault(len(batch_NT), Entry(torch.empty(0), entry.calls))
        current.append(entry.hidden_NTD if hidden is None else hidden[i].to(loaded.device))

    for index, block in list(enumerate(loaded.blocks))[start:]:
        # lists are filled anew, so that no block's inputs outlive its visit
        outputs = list(current)

        def forward(index: int = index, inputs: list[Tensor] = current, outputs: list[Tensor] = outputs) -> None:
            for i, hidden_NTD in enumerate(inputs):
                outputs[i] = entries[len(hidden_NTD)].run(index, loaded.blocks[index], hidden_NTD)

        with resident(block):
            yield BlockVisit(index, [unit for unit in loaded.units if unit.block == index], forward, outputs)
        current = outputs
