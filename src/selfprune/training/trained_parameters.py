"""What of a model is trained: all of it, or matrices of low rank beside its units; zeros of single weights stay what they are.

LoRA (Hu et al., 2021, arXiv 2106.09685): W + (α/r)·B·A, here only where W is not zero, with α = r. HiRA (Huang et al., 2025,
ICLR): W + W ⊙ (B·A), whose zeros stay by themselves. B begins with zeros, so that both begin with W.

Limits: low-rank matrices stand beside units alone, the matrices of the blocks, not beside embeddings or norms.

Shape suffixes: E experts, R rows, C columns, K rank.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from selfprune.allocations.unit import Unit
from selfprune.training.base import Trained


class LowRank(nn.Module):
    """A matrix, or a stack of them, with an addition of low rank.

    Args:
        weight_RC: the matrix as it is stored, [R, C] or [E, R, C].
        rank: K.
        of_itself: whether the addition is the matrix times the product (HiRA).
        generator: draws A.
    """

    def __init__(self, weight_RC: Tensor, rank: int, of_itself: bool, generator: torch.Generator) -> None:
        super().__init__()
        *stack, n_rows, n_columns = weight_RC.shape
        drawn_KC = torch.randn(*stack, rank, n_columns, generator=generator) / n_columns**0.5
        self.a_KC = nn.Parameter(drawn_KC.to(weight_RC))
        self.b_RK = nn.Parameter(torch.zeros(*stack, n_rows, rank).to(weight_RC))
        self._of_itself = of_itself
        self._kept_RC = None if of_itself or bool((weight_RC != 0).all()) else weight_RC != 0

    def forward(self, weight_RC: Tensor) -> Tensor:
        """The matrix with its addition."""
        added_RC = self.b_RK @ self.a_KC
        if self._of_itself:
            return weight_RC + weight_RC * added_RC
        return weight_RC + (added_RC if self._kept_RC is None else added_RC * self._kept_RC)


@contextmanager
def trained_parameters(
    model: nn.Module, units: Sequence[Unit], trained: Trained, rank: int, seed: int
) -> Iterator[dict[str, nn.Parameter]]:
    """While open, the parameters that are trained, by name; at the end they are merged, and no parameter has a gradient.

    Args:
        model: in place.
        units: single weights whose zeros stay.
        trained: what is trained.
        rank: of the additions.
        seed: of their first values.
    """
    from selfprune.models.units import stored_weight  # here, since configs are checked without transformers

    matrices = [stored_weight(model, unit) for unit in units]
    model.requires_grad_(trained is Trained.FULL)
    hooks, parametrized = [], []
    if trained is Trained.FULL:
        for matrix in matrices:
            if bool((zero_RC := matrix == 0).any()):
                hooks.append(matrix.register_hook(partial(_without, zero_RC)))  # type: ignore[no-untyped-call]
    else:
        generator = torch.Generator().manual_seed(seed)
        of_parameter = {id(parameter): name for name, parameter in model.named_parameters()}
        for matrix in matrices:
            path, _, attribute = of_parameter[id(matrix)].rpartition(".")
            owner = model.get_submodule(path)
            addition = LowRank(matrix.detach(), rank, trained is Trained.HIRA, generator)
            parametrize.register_parametrization(owner, attribute, addition)
            parametrized.append((owner, attribute))
    try:
        yield {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    finally:
        for hook in hooks:
            hook.remove()
        for owner, attribute in parametrized:
            parametrize.remove_parametrizations(owner, attribute, leave_parametrized=True)
        model.requires_grad_(False)


def _without(zero_RC: Tensor, gradient_RC: Tensor) -> Tensor:
    return gradient_RC.masked_fill(zero_RC, 0)
