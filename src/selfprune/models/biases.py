"""Biases of the units, for recoveries that set them.

Shape suffixes: O out.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from selfprune.allocations.unit import Unit
from selfprune.errors import ModelError
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
