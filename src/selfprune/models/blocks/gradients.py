"""Gradients of the loss with respect to the units' weights, block by block backwards.

Only one block's graph is held at a time: the forward pass keeps the hidden states between blocks and each block is run again when
its turn comes (Chen et al., 2016, arXiv 1604.06174).

Shape suffixes: N sequences, T tokens, D hidden width, V vocabulary, O out, I in.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from selfprune.allocations.unit import Unit
from selfprune.models.blocks.calls import capture_calls, logits_of_few
from selfprune.models.blocks.residency import resident
from selfprune.models.loading import LoadedModel
from selfprune.models.units import stored_weight, weight_matrix

OnGradient = Callable[[Unit, Tensor], None]
Loss = Callable[[slice, Tensor], Tensor]
"""What some of the windows add to a number, from their logits [N, T, V]."""


def backward_blocks(loaded: LoadedModel, window_NT: Tensor, on_gradient: OnGradient, loss: Loss | None = None) -> None:
    """One forward and one backward pass of a loss over some windows.

    Args:
        loaded: the model; its parameters need no gradients and keep none.
        window_NT: tokens, all in one pass.
        on_gradient: is given each unit and the gradient of its weights [O, I]; zeros for experts that no token reached.
        loss: what is differentiated; the mean next-token loss when None.
    """
    window_NT = window_NT.to(loaded.device)
    with torch.no_grad():
        entry = capture_calls(loaded.model, loaded.blocks, window_NT)
        inputs = [entry.hidden_NTD]
        for index, block in enumerate(loaded.blocks):
            with resident(block):
                inputs.append(entry.run(index, block, inputs[-1]))
    gradient_NTD = _loss_gradient(loaded, window_NT, inputs.pop(), loss or partial(next_token_loss, window_NT))
    for index in reversed(range(len(loaded.blocks))):
        block, hidden_NTD = loaded.blocks[index], inputs.pop().detach().requires_grad_()
        with resident(block):
            units = [unit for unit in loaded.units if unit.block == index]
            weights = [stored_weight(loaded.model, unit) for unit in units]
            output_NTD = _run_with_gradients(weights, lambda: entry.run(index, block, hidden_NTD))  # noqa: B023
            # The embedding's gradient is of no use, but a block of the middle needs that of its input.
            gradient_NTD, *found = torch.autograd.grad(
                output_NTD, [hidden_NTD, *weights], gradient_NTD.to(output_NTD.device), materialize_grads=True
            )
            for weight in weights:
                weight.requires_grad_(False)
            for unit, gradient in zip(units, found, strict=True):
                on_gradient(unit, weight_matrix(loaded.model, unit, gradient))


def _run_with_gradients(weights: list[nn.Parameter], run: Callable[[], Tensor]) -> Tensor:
    for weight in weights:
        weight.requires_grad_(True)
    with torch.enable_grad():
        return run()


def next_token_loss(window_NT: Tensor, few: slice, logits_NTV: Tensor) -> Tensor:
    """What some of the windows add to the mean negative log-likelihood of every token but the first, in nats."""
    targets_K = window_NT[few, 1:].flatten().to(logits_NTV.device)
    total = nn.functional.cross_entropy(logits_NTV[:, :-1].float().flatten(0, 1), targets_K, reduction="sum")
    return total / window_NT[:, 1:].numel()


def _loss_gradient(loaded: LoadedModel, window_NT: Tensor, hidden_NTD: Tensor, loss: Loss) -> Tensor:
    """Gradient of the loss with respect to the last block's output [N, T, D], of few windows at once."""
    found = []
    with torch.enable_grad():
        hidden_NTD = hidden_NTD.detach().requires_grad_()
        for few, logits_NTV in logits_of_few(loaded.model, loaded.blocks, window_NT, hidden_NTD):
            found.append(torch.autograd.grad(loss(few, logits_NTV), hidden_NTD)[0][few])
    return torch.cat(found)
