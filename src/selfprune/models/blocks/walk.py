"""Walks the blocks of a model once, with one block's weights and activations at hand at a time.

Shape suffixes: N sequences, T tokens, D hidden width, V vocabulary, K tokens that are predicted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selfprune.allocations.unit import Unit
from selfprune.models.blocks.calls import BlockCalls, capture_calls, logits_from, same_arguments
from selfprune.models.blocks.residency import resident
from selfprune.models.loading import LoadedModel

N_LOGITS_AT_ONCE = 2**24
"""Logits of scored tokens held together, whatever the vocabulary; twice as many let peak memory grow and saved no time."""
N_WINDOWS_AT_ONCE, N_TOKENS_AT_ONCE = 4, 1024
"""Most windows, and most tokens of several of them, in one pass whose results are summed."""


@dataclass
class BlockVisit:
    """One block of the walk, with the inputs that reach it.

    Attributes:
        index: position of the block.
        block: the block.
        units: its units.
        inputs: per batch the hidden states [N, T, D] that reach it.
        calls: per batch what it takes besides.
        hidden: per batch the hidden states [N, T, D] that the last run gave, or the inputs before the first.
    """

    index: int
    block: nn.Module
    units: list[Unit]
    inputs: list[Tensor]
    calls: list[BlockCalls]
    hidden: list[Tensor]

    def forward(self) -> None:
        """Runs the block on all inputs; the last run's outputs feed the next block."""
        for i, hidden_NTD in enumerate(self.inputs):
            self.hidden[i] = self.calls[i].run(self.index, self.block, hidden_NTD)


def windows_per_pass(n_tokens_per_window: int) -> int:
    """How many windows share a pass that gathers statistics or gradients, in every run and pruning.

    These are sums over passes, whose last bits depend on which windows share one. No setting decides this, therefore.
    """
    return max(1, min(N_WINDOWS_AT_ONCE, N_TOKENS_AT_ONCE // n_tokens_per_window))


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
    shared: dict[int, BlockCalls] = {}
    calls, current = [], []
    for i, batch_NT in enumerate(batches):
        entry = capture_calls(loaded.model, loaded.blocks, batch_NT)
        own = BlockCalls(torch.empty(0), entry.calls)
        first = shared.setdefault(len(batch_NT), own)
        calls.append(first if same_arguments(first, own) else own)
        current.append(entry.hidden_NTD if hidden is None else hidden[i].to(loaded.device))

    for index, block in list(enumerate(loaded.blocks))[start:]:
        units = [unit for unit in loaded.units if unit.block == index]
        # lists are filled anew, so that no block's inputs outlive its visit
        visit = BlockVisit(index, block, units, current, calls, hidden=list(current))
        with resident(block):
            yield visit
        current = visit.hidden


@torch.no_grad()
def nll_per_token(loaded: LoadedModel, windows_NT: Tensor, batch_size: int) -> float:
    """Negative log-likelihood of every token but the first of each window, in nats per token, by one walk over the blocks.

    The logarithms are taken in fp32 of what the output head gives.

    Args:
        loaded: the model.
        windows_NT: token windows of equal length.
        batch_size: windows per forward pass.
    """
    hidden: list[Tensor] = []
    for visit in walk_blocks(loaded, windows_NT, batch_size):
        visit.forward()
        hidden = visit.hidden
    n_at_once = max(1, N_LOGITS_AT_ONCE // loaded.model.config.get_text_config().vocab_size)
    n_predicted, total = windows_NT.shape[1] - 1, 0.0
    for window_T, hidden_TD in zip(windows_NT.to(loaded.device), (each for batch in hidden for each in batch), strict=True):
        for start in range(0, n_predicted, n_at_once):
            stop = min(start + n_at_once, n_predicted)
            # beyond the blocks every position stands for itself
            logits_1KV = logits_from(loaded.model, loaded.blocks, window_T[None, start:stop], hidden_TD[None, start:stop])
            targets_K = window_T[start + 1 : stop + 1].to(logits_1KV.device)
            total += float(nn.functional.cross_entropy(logits_1KV[0].float(), targets_K, reduction="sum"))
    return total / (len(windows_NT) * n_predicted)
