"""Cuts pruned heads and channels out of a checkpoint's tensors, and says in its configuration how wide each block is.

An item is gone when its columns of the reader are zero: the model without it gives the same logits. So what is cut is read off
the weights themselves, and heads and channels that never did anything go with those that were pruned.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from selfprune.allocations.unit import Item
from selfprune.checkpoints.widths import NUMBERS_OF_EXPERTS, WIDTHS, config_number, own_name
from selfprune.exports.dropping import renumbered_config
from selfprune.models.loading import LoadedModel
from selfprune.models.per_layer import NARROWED, PREFIX, class_names
from selfprune.models.structures import Structure, list_structures
from selfprune.models.units import by_item, weight_view

AS_MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
"""A Llama without biases is a Mistral without a window, to the bit; and Mistral takes heads that do not divide the width."""
MODELLING = "per_layer.py"
"""The file that a checkpoint of blocks of different widths brings along; named as the module that it is a copy of."""


def cuttable(loaded: LoadedModel) -> tuple[Structure, ...]:
    """The structures that are cut when the checkpoint is written: none of a model whose single weights are pruned."""
    return list_structures(loaded.model) if any(unit.item is not Item.WEIGHT for unit in loaded.units) else ()


def kept_items(model: nn.Module, structure: Structure) -> Tensor:
    """Which items [C] of a structure are there: those whose columns of the reader are not all zero."""
    return (by_item(structure.unit, weight_view(model, structure.unit)) != 0).any(2).any(0)


def cut(tensors: Mapping[str, Tensor], structures: Iterable[Structure], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what belongs to items that are gone.

    Args:
        tensors: name in the model -> tensor; those of no structure stay as they are.
        structures: whose slices are cut.
        kept: name of a unit -> which of its items stay [C].
    """
    entries: dict[tuple[str, int], Tensor] = {}
    for structure in structures:
        for part in structure.slices:
            if part.parameter in tensors:
                key = part.parameter, part.axis
                size = tensors[part.parameter].shape[part.axis]
                mask = entries.setdefault(key, torch.ones(size, dtype=torch.bool))
                own = kept[structure.unit.name].cpu().repeat_interleave(part.width)
                mask[part.start : part.start + len(own)] &= own
    result = dict(tensors)
    for (name, axis), mask in entries.items():
        result[name] = result[name].index_select(axis, mask.nonzero().flatten().to(result[name].device))
    return result


def n_kept(structures: Iterable[Structure], shapes: Mapping[str, tuple[int, ...]]) -> dict[Structure, int]:
    """How many items of each structure stayed, by the shapes in the checkpoint.

    Args:
        structures: of the model.
        shapes: name in the checkpoint -> shape.
    """
    counted = {structure: structure.counted for structure in structures}
    return {s: shapes[c.parameter][c.axis] // c.width if c.parameter in shapes else 0 for s, c in counted.items()}


def cut_config(
    config: Any,
    kept: Mapping[Structure, int],
    new_biases: Mapping[int, Sequence[str]] | None = None,
    gone: Sequence[int] = (),
) -> dict[str, Any]:
    """What changes in the configuration of a model whose structures were cut.

    Args:
        config: of the model as it was.
        kept: how many items of each structure stayed.
        new_biases: block -> its matrices that have a bias which the family does not know.
        gone: blocks that are left out.

    Returns:
        new values of a config.json: widths where all blocks have the same, else those of each block and the code that reads them.
    """
    blocks = [_widths(block) for block in config.per_layer_config]
    for structure, n in kept.items():
        own, unit = blocks[structure.unit.block], structure.unit
        if unit.item is Item.EXPERT:
            own[next(name for name in NUMBERS_OF_EXPERTS if name in own)] = n
        elif unit.item is Item.CHANNEL:
            own["intermediate_size"] = n
        else:
            n_groups = n if unit.n_items > 1 else n * own["num_key_value_heads"]
            own["num_attention_heads"] = own["num_attention_heads"] // own["num_key_value_heads"] * n_groups
            own["num_key_value_heads"] = n_groups
        if n == 0:
            own["skip"].append("mlp" if unit.item is Item.CHANNEL else "attention")
    for index, names in (new_biases or {}).items():
        blocks[index]["biased"] += names
    for own in blocks:
        # numbers that a configuration takes, of what is not there
        own |= dict.fromkeys(WIDTHS[:2], 1) if "attention" in own["skip"] else {}
        own |= {"intermediate_size": 1} if "mlp" in own["skip"] else {}
    blocks = [own for index, own in enumerate(blocks) if index not in gone]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if all(own == blocks[0] and not own["skip"] and not own["biased"] for own in blocks):
        of_experts = {name: n for name, n in blocks[0].items() if name in NUMBERS_OF_EXPERTS}
        of_all = _in_own_names(config, {"head_dim": head_dim} | {name: blocks[0][name] for name in WIDTHS} | of_experts)
        if of_all and _is_accepted(config, of_all):
            return of_all
        is_plain_llama = config.model_type == "llama" and not (config.attention_bias or config.mlp_bias)
        if is_plain_llama and _is_accepted(config, of_all | AS_MISTRAL):
            return of_all | AS_MISTRAL
    family = config.model_type.removeprefix(PREFIX)
    config_name, model_name = class_names(family)
    stem = MODELLING.removesuffix(".py")
    return {
        "model_type": PREFIX + family,
        "architectures": [model_name],
        "auto_map": {"AutoConfig": f"{stem}.{config_name}", "AutoModelForCausalLM": f"{stem}.{model_name}"},
        "allow_global_per_layer_attribute_access": True,
        "head_dim": head_dim,
        "per_layer_config": {f"{i:02d}": {key: value for key, value in own.items() if value} for i, own in enumerate(blocks)},
    }


def write_cut(
    folder: Path,
    config: Any,
    kept: Mapping[Structure, int],
    new_biases: Mapping[int, Sequence[str]],
    gone: Sequence[int] = (),
) -> None:
    """Writes the changed values into a checkpoint's config.json, and the code beside it where its blocks differ.

    Args:
        folder: of the checkpoint.
        config: of the model as it was.
        kept: how many items of each structure stayed.
        new_biases: block -> its matrices that have a bias which the family does not know.
        gone: blocks that are left out.

    Raises:
        OSError: when the disk is full or the folder cannot be written.
    """
    path = folder / "config.json"
    content = json.loads(path.read_bytes())
    changed = cut_config(config, kept, new_biases, gone)
    changed = renumbered_config(changed, content, gone) if gone else changed
    path.write_text(json.dumps(content | changed, indent=2) + "\n")
    if "per_layer_config" in changed:
        (folder / MODELLING).write_bytes((files("selfprune.models") / MODELLING).read_bytes())


def _widths(block: Any) -> dict[str, Any]:
    """What a block's configuration says of its widths, of sublayers that were gone already, and of biases."""
    lists = {name: list(getattr(block, name, ())) for name in ("skip", "biased")}
    values = block.to_dict() | {name: value for name in WIDTHS if (value := getattr(block, name, None)) is not None}
    heads, kv_heads, channels = (config_number(values, name) for name in WIDTHS)
    of_experts = {name: n for name in NUMBERS_OF_EXPERTS if isinstance(n := values.get(name), int)}
    return dict(zip(WIDTHS, (heads, kv_heads or heads, channels or 4 * block.hidden_size), strict=True)) | of_experts | lists


def _in_own_names(config: Any, widths: dict[str, Any]) -> dict[str, Any]:
    """The widths as the family's own configuration calls them, and only those that it has; none where it cannot tell them."""
    family = config.model_type.removeprefix(PREFIX)
    if family not in NARROWED:
        return widths
    # their heads are as wide as the hidden state allows, so that only all of them are of the same width as before
    is_whole = widths["num_attention_heads"] == config.num_attention_heads
    name = own_name(config.to_dict(), "intermediate_size")
    return {name: widths["intermediate_size"]} if is_whole else {}


def _is_accepted(config: Any, changed: Mapping[str, Any]) -> bool:
    """Whether the configuration of the family, or of that which is named, takes these widths: some want heads that divide."""
    if config.model_type.startswith(PREFIX):
        return False
    try:
        CONFIG_MAPPING[changed.get("model_type", config.model_type)](**{**config.to_dict(), **changed})
    except Exception:  # each family refuses in its own way
        return False
    return True
