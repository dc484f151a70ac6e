"""What a checkpoint of a model's architecture calls the tensors that the model holds, which it may also split or join."""

from collections.abc import Collection, Container
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.accelerate import load_offloaded_parameter

from selfprune.exports.cutting import cut, kept_items
from selfprune.models.loading import LoadedModel
from selfprune.models.structures import Structure
from selfprune.models.units import stored_weight

UNIT_MARK, OTHER_MARK = torch.float64, torch.float32
"""Number formats of stand-ins without content: the wider one survives splitting and joining, and so tells what units become."""


@dataclass(frozen=True)
class Told:
    """What is known of a stored tensor before it is made.

    Attributes:
        reverted: what transformers calls it on disk.
        shape: on disk.
        dtype: the number format that the model holds it in.
        is_of_unit: whether a unit is in it.
    """

    reverted: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_of_unit: bool


@dataclass(frozen=True)
class Part:
    """A block of a model, or all that lies outside the blocks.

    Attributes:
        names: what the model calls its tensors; tied ones once.
        stored: name in the checkpoint -> what is known of it.
    """

    names: tuple[str, ...]
    stored: dict[str, Told]

    def make(self, loaded: LoadedModel, structures: Collection[Structure] = ()) -> dict[str, Tensor]:
        """Name in the checkpoint -> tensor as the model has it now.

        Args:
            loaded: the model.
            structures: whose items are cut out where they are gone.
        """
        tensors = _tensors(loaded)
        own = {name: tensors[name].detach() for name in self.names}
        # what lies outside the blocks may have been left in main memory or on disk
        own = {n: load_offloaded_parameter(loaded.model, n) if tensor.is_meta else tensor for n, tensor in own.items()}
        here = [structure for structure in structures if structure.reader.parameter in own]
        own = cut(own, here, {structure.unit.name: kept_items(loaded.model, structure) for structure in here})
        reverted = revert_weight_conversion(loaded.model, own)
        # experts that are gone leave names without a tensor
        return {name: reverted[told.reverted] for name, told in self.stored.items() if told.reverted in reverted}


def list_parts(loaded: LoadedModel, known: Container[str], structures: Collection[Structure] = ()) -> list[Part]:
    """The blocks in order, and last what lies outside them.

    Args:
        loaded: the model; nothing of it is read.
        known: the names in the checkpoint that it was loaded from, which may lack the prefix of the decoder or have one more.
        structures: that may be cut, so that all that belongs to them comes from the model.
    """
    tensors = _tensors(loaded)
    units = {id(stored_weight(loaded.model, unit)) for unit in loaded.units}
    units |= {id(tensors[name]) for name in loaded.biases}
    units |= {id(tensors[part.parameter]) for structure in structures for part in structure.slices}
    prefixes = [loaded.block_prefix(index) for index in range(len(loaded.blocks))]
    groups = [[name for name in tensors if name.startswith(prefix)] for prefix in prefixes]
    groups.append([name for name in tensors if not name.startswith(tuple(prefixes))])
    parts = []
    for group in groups:
        own = {name: tensors[name] for name in group}
        told = revert_weight_conversion(loaded.model, {n: torch.empty_like(t, device="meta") for n, t in own.items()})
        marks = {n: UNIT_MARK if id(tensor) in units else OTHER_MARK for n, tensor in own.items()}
        marked = {n: torch.empty_like(tensor, device="meta", dtype=marks[n]) for n, tensor in own.items()}
        marked = revert_weight_conversion(loaded.model, marked)
        stored = {
            _known_name(name, known, loaded.model.base_model_prefix): Told(
                name, tuple(tensor.shape), tensor.dtype, marked[name].dtype == UNIT_MARK
            )
            for name, tensor in told.items()
        }
        parts.append(Part(tuple(group), stored))
    return parts


def stored_name(loaded: LoadedModel, name: str) -> str:
    """What a checkpoint calls a tensor of the model that it neither splits nor joins.

    Args:
        loaded: the model.
        name: in the model.
    """
    if name not in (tensors := _tensors(loaded)):
        return name
    reverted: dict[str, Tensor] = revert_weight_conversion(loaded.model, {name: torch.empty_like(tensors[name], device="meta")})
    return next(iter(reverted))


def _tensors(loaded: LoadedModel) -> dict[str, Tensor]:
    """Name -> tensor of what a checkpoint holds; tied weights once."""
    kept = loaded.model.state_dict(keep_vars=True).keys()
    named = [*loaded.model.named_parameters(), *loaded.model.named_buffers()]
    return {name: tensor for name, tensor in named if name in kept}


def _known_name(name: str, known: Container[str], prefix: str) -> str:
    """The name in a checkpoint of the bare decoder, whose names lack the prefix, or the same name."""
    for other in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        if other in known:
            return other
    return name
