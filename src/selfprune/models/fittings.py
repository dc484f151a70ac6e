"""What a model is fitted with before it is pruned: biases that a recovery sets, and routers that pass over experts that are gone.

Shape suffixes: O out, E experts.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from selfprune.allocations.unit import Item, Unit
from selfprune.errors import ModelError
from selfprune.models.families import EXPERTS
from selfprune.models.loading import LoadedModel
from selfprune.models.per_layer import LIKE_LLAMA
from selfprune.models.structures import family_of


def bias_of(loaded: LoadedModel, unit: Unit) -> nn.Parameter:
    """The bias [O] of a unit of a model that has one for each."""
    bias: nn.Parameter = loaded.model.get_parameter(f"{unit.matrix}.bias")
    return bias


def with_biases_in_place(loaded: LoadedModel) -> LoadedModel:
    """Gives every unit a bias of zeros that has none, and says so.

    Raises:
        ModelError: when a unit is no linear layer, or the family's checkpoints cannot hold biases that it does not know.
    """
    own = dict(loaded.model.named_parameters())
    new = []
    for unit in loaded.units:
        name, weight = f"{unit.matrix}.bias", own.get(f"{unit.matrix}.weight")
        if weight is None:
            raise ModelError(f"the fused experts {unit.matrix} cannot have biases; choose recovery=least_squares, or none")
        if name not in own:
            new.append(name)
            n_out = weight.shape[0]
            bias_O = torch.zeros(n_out, dtype=weight.dtype, device=weight.device)
            loaded.model.get_submodule(unit.matrix).bias = nn.Parameter(bias_O, requires_grad=False)
    if new and family_of(loaded.model) not in LIKE_LLAMA:
        raise ModelError(
            f"recovery=bias_compensation would give {new[0]} to a model of the type {family_of(loaded.model)}, whose checkpoints "
            f"cannot hold it; those that can are {', '.join(LIKE_LLAMA)}; choose recovery=least_squares, or none"
        )
    return replace(loaded, biases=tuple(f"{unit.matrix}.bias" for unit in loaded.units), new_biases=tuple(new))


def compensate_in_place(loaded: LoadedModel, unit: Unit, bias_O: Tensor) -> None:
    """Adds to the bias of a unit."""
    bias_of(loaded, unit).add_(bias_O)


def fitted_in_place(loaded: LoadedModel, adds_biases: bool) -> LoadedModel:
    """A model that can be pruned: with biases where a recovery needs them, and with routers that pass over experts that are gone.

    Raises:
        ModelError: as `with_biases_in_place` does.
    """
    for unit in loaded.units:
        if unit.item is Item.EXPERT:
            _mask_router_in_place(loaded, unit)
    return with_biases_in_place(loaded) if adds_biases else loaded


def _mask_router_in_place(loaded: LoadedModel, unit: Unit) -> None:
    """An expert is gone when its matrices are zero; its router then chooses among the others, as if it had no row for it."""
    block, experts = loaded.model.get_submodule(unit.matrix.rpartition(".")[0]), EXPERTS[family_of(loaded.model)]
    owner = unit.matrix.removesuffix(f".{experts.reader}")
    router: Any = loaded.model.get_submodule(f"{owner}.{experts.router}")
    chooses: Callable[..., Any] = router.forward
    reader = unit.matrix.rpartition(".")[2]

    def forward(*arguments: Any, **named: Any) -> Any:
        # of an expert that is there, no two rows are zero
        gone_E = (getattr(block, reader)[:, :2] == 0).flatten(1).all(dim=1)
        if not gone_E.any():
            return chooses(*arguments, **named)
        with _PassingOver(router.weight, gone_E):
            return chooses(*arguments, **named)

    router.forward = forward


class _PassingOver(TorchFunctionMode):
    """While it is active, a router's logits of experts that are gone are as low as can be."""

    def __init__(self, weight: Tensor, gone_E: Tensor) -> None:
        super().__init__()
        self._weight, self._gone_E = weight, gone_E

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is linear and args[1] is self._weight:
            return result.masked_fill(self._gone_E, -torch.inf)
        return result
