"""Forward passes that skip the blocks whose result is known.

Shape suffixes: N sequences, T tokens, D hidden width.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from selfprune.models.blocks.calls import StopForwardError, bypassed, first_tensor


class PrefixForward:
    """Runs one model on recurring sequences and computes only from the first block that differs from their last run.

    When candidates are visited in the lexicographic order of their blocks' versions, this walks the tree of their common
    prefixes and computes each node once, with the hidden states of a single path in memory. Results equal those of full
    passes bit for bit on CPU, since every block that runs gets the very same input.

    Args:
        model: the causal language model.
        blocks: its decoder blocks in order.
        max_bytes: bound on the kept hidden states; sequences past it are computed in full.

    Attributes:
        n_blocks_run: runs of a block, counted for every sequence.
        n_blocks_asked: as many as there would have been without reuse.

    Example:
        >>> forward = PrefixForward(model, blocks, max_bytes=2**30)
        >>> hidden_NTD = forward(["window 0", "window 1"], batch_NT, versions=[(0, 5), (3, 3)])
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], max_bytes: int) -> None:
        self.model = model
        self.blocks = blocks
        self.max_bytes = max_bytes
        self.n_blocks_run = 0
        self.n_blocks_asked = 0
        self._paths: dict[Hashable, tuple[list[Hashable], list[Tensor]]] = {}
        self._n_bytes = 0

    @torch.no_grad()
    def __call__(self, keys: Sequence[Hashable], batch_NT: Tensor, versions: Sequence[Hashable]) -> Tensor:
        """The last block's hidden states [N, T, D].

        Args:
            keys: name the sequences; the same key must always come with the same tokens.
            batch_NT: the tokens of these sequences, which share a pass, and with it what any of them must compute.
            versions: one value per block, equal whenever the block's weights are.
        """
        n_reused = min(self._n_reusable(key, versions) for key in keys)
        given = torch.cat([self._paths[key][1][n_reused] for key in keys]) if n_reused else None
        path: list[Tensor] = []
        with ExitStack() as stack:
            for block in self.blocks[:n_reused]:
                stack.enter_context(bypassed(block))
            for index in range(n_reused, len(self.blocks)):
                hook = _entering(path, given if index == n_reused else None)
                stack.callback(self.blocks[index].register_forward_pre_hook(hook).remove)
            path_end: list[Tensor] = []
            stack.callback(self.blocks[-1].register_forward_hook(_leaving(path_end)).remove)
            with suppress(StopForwardError):
                self.model(input_ids=batch_NT, use_cache=False)
        self.n_blocks_run += len(keys) * (len(self.blocks) - n_reused)
        self.n_blocks_asked += len(keys) * len(self.blocks)
        for i, key in enumerate(keys):
            self._keep(key, list(versions), n_reused, [hidden_NTD[i : i + 1] for hidden_NTD in path])
        return path_end[0]

    def clear(self) -> None:
        """Forgets all hidden states."""
        self._paths, self._n_bytes = {}, 0

    def _n_reusable(self, key: Hashable, versions: Sequence[Hashable]) -> int:
        """Blocks of a sequence whose results are known; the last one always runs, since only its input is kept."""
        known, inputs = self._paths.get(key, ([], []))
        n_same = next((i for i, (a, b) in enumerate(zip(known, versions, strict=False)) if a != b), len(known))
        return min(n_same, len(inputs) - 1) if inputs else 0

    def _keep(self, key: Hashable, versions: list[Hashable], n_reused: int, path: list[Tensor]) -> None:
        """Keeps the inputs of a sequence's blocks, those of the blocks that ran by copies, since the pass's are held whole."""
        if key in self._paths:
            known = self._paths[key][1][:n_reused]
        else:
            known, n_bytes = [], sum(hidden.nbytes for hidden in path)
            if self._n_bytes + n_bytes > self.max_bytes:
                return
            self._n_bytes += n_bytes
        self._paths[key] = (versions, known + [hidden_1TD.clone() for hidden_1TD in path])


def _entering(path: list[Tensor], given: Tensor | None) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook that hands the known input to the first block that runs, and notes the input of every block."""

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_NTD = arguments[0] if given is None else given
        path.append(hidden_NTD)
        return (hidden_NTD, *arguments[1:])

    return hook


def _leaving(end: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """A hook that notes the output of the last block, beyond which nothing is wanted."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        end.append(first_tensor(output))
        raise StopForwardError

    return hook
