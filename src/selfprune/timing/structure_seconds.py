"""How long attentions and FFNs take at every width, inside a model that reads or writes tokens.

A model of random weights is built whose blocks have one width each, and runs as a whole; so caches are as cold as in the model
itself. Limits: a hook around every sublayer waits for a GPU, which overlaps less than without.
"""

import copy
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from selfprune.allocations.unit import Item, Unit
from selfprune.errors import ModelError
from selfprune.models.per_layer import LIKE_LLAMA, PREFIX, classes, register
from selfprune.models.structures import family_of
from selfprune.models.units import find_blocks
from selfprune.timing.workload import Timed, Workload

MODULES = {Item.HEAD_GROUP: "self_attn", Item.CHANNEL: "mlp"}


@dataclass(frozen=True)
class StructureSeconds:
    """What a model takes.

    Attributes:
        points: unit -> sparsity and seconds of its sublayer, rising in sparsity.
        outside: seconds besides the units, of all blocks and of embedding and head.
    """

    points: Mapping[str, list[tuple[float, float]]]
    outside: float


def structure_seconds(
    skeleton: Any,
    units: Sequence[Unit],
    workload: Workload,
    n_widths: int,
    dtype: torch.dtype,
    device: torch.device,
    n_repeats: int,
) -> StructureSeconds:
    """Measures the sublayers of a model at several widths.

    Args:
        skeleton: the model, with or without its weights.
        units: its heads and channels.
        workload: what it does.
        n_widths: widths of each sublayer, from whole to gone.
        dtype: number format.
        device: where it runs.
        n_repeats: measurements, of which the median counts.

    Raises:
        ModelError: when models of the family cannot be built with blocks of different widths.
    """
    family = family_of(skeleton)
    if family not in LIKE_LLAMA:
        raise ModelError(
            f"the seconds of heads and channels of models of the type {family} cannot be measured; those that can are "
            f"{', '.join(LIKE_LLAMA)}"
        )
    kinds = _layer_types(skeleton.config)
    keys = {unit.name: (unit.item, unit.n_items, kinds[unit.block]) for unit in units}
    widths = {key: _widths(key[1], n_widths) for key in keys.values()}
    measured: dict[tuple[Item, int, str], list[tuple[float, float]]] = {}
    n_blocks, outside = len(kinds), 0.0
    for kind in dict.fromkeys(kinds):
        here = {key: of_key for key, of_key in widths.items() if key[2] == kind}
        points, per_block, rest = _measure(skeleton, here, kind, workload, dtype, device, n_repeats)
        measured |= points
        outside += per_block * kinds.count(kind) + rest * kinds.count(kind) / n_blocks
    of_kind: dict[str, set[tuple[Item, int, str]]] = {}
    for unit in units:
        of_kind.setdefault(unit.kind, set()).add(keys[unit.name])
    named = {unit.kind if len(of_kind[unit.kind]) == 1 else unit.name: measured[keys[unit.name]] for unit in units}
    return StructureSeconds(named, outside)


def structure_shapes(units: Sequence[Unit]) -> dict[str, list[float]]:
    """Kind of unit, or unit name where those of a kind differ -> items, weights of each, and columns by which each is read."""
    shapes = {unit.name: [float(unit.n_items), float(unit.weights_per_item), float(unit.item_width)] for unit in units}
    of_kind: dict[str, list[list[float]]] = {}
    for unit in units:
        of_kind.setdefault(unit.kind, []).append(shapes[unit.name])
    return {
        unit.kind if all(shape == shapes[unit.name] for shape in of_kind[unit.kind]) else unit.name: shapes[unit.name]
        for unit in units
    }


def _widths(n_items: int, n_widths: int) -> list[int]:
    """Numbers of items that stay, from all to none."""
    n = min(n_widths, n_items + 1)
    return sorted({round(n_items * i / (n - 1)) for i in range(n)}, reverse=True)


def _layer_types(config: Any) -> list[str]:
    """What each block attends to; blocks are alike where a configuration does not tell."""
    kinds = getattr(config, "layer_types", None)
    return list(kinds) if kinds else [""] * config.num_hidden_layers


def _measure(
    skeleton: Any,
    widths: Mapping[tuple[Item, int, str], list[int]],
    kind: str,
    workload: Workload,
    dtype: torch.dtype,
    device: torch.device,
    n_repeats: int,
) -> tuple[dict[tuple[Item, int, str], list[tuple[float, float]]], float, float]:
    """Of the blocks of one kind: the points, seconds of a block besides its units, and of the model besides its blocks."""
    places = {(key, width): i for key, of_key in widths.items() for i, width in enumerate(of_key)}
    model = _model_of_widths(skeleton, widths, kind, dtype, device)
    blocks = find_blocks(model)[1]
    watched = {f"{i}.{name}": getattr(block, name) for i, block in enumerate(blocks) for name in MODULES.values()}
    timed = Timed(model, workload, watched | {str(i): block for i, block in enumerate(blocks)})
    timed.repeat(is_counted=False)
    for _ in range(n_repeats):
        timed.repeat()
    seconds = {name: timed.seconds(name) for name in timed.samples}
    points: dict[tuple[Item, int, str], list[tuple[float, float]]] = {}
    for (key, width), place in places.items():
        item, n_items, _ = key
        points.setdefault(key, []).append((1 - width / n_items, max(seconds[f"{place}.{MODULES[item]}"], 1e-9)))
    of_blocks = [seconds[str(i)] for i in range(len(blocks))]
    besides = [whole - sum(seconds[f"{i}.{name}"] for name in MODULES.values()) for i, whole in enumerate(of_blocks)]
    del model, timed, watched, blocks
    gc.collect()
    return points, sum(besides) / len(besides), max(seconds[""] - sum(of_blocks), 0.0)


def _model_of_widths(
    skeleton: Any, widths: Mapping[tuple[Item, int, str], list[int]], kind: str, dtype: torch.dtype, device: torch.device
) -> Any:
    """A model of random weights in which the n-th block has the n-th width of every unit."""
    config = skeleton.config
    n_blocks = max(len(of_key) for of_key in widths.values())
    # a model that was cut may have lost the unit of a kind altogether
    whole = {item: max((key[1] for key in widths if key[0] is item), default=0) for item in MODULES}
    per_layer = {}
    for i in range(n_blocks):
        own: dict[str, Any] = {"skip": []}
        for item, name in ((Item.HEAD_GROUP, "attention"), (Item.CHANNEL, "mlp")):
            of_item = next((of_key for key, of_key in widths.items() if key[:2] == (item, whole[item])), [0])
            n = of_item[min(i, len(of_item) - 1)]
            own["skip"] += [] if n else [name]
            if item is Item.CHANNEL:
                own["intermediate_size"] = max(n, 1)
            else:
                own |= _heads(skeleton, max(n, 1), max(whole[item], 1))
        per_layer[f"{i:02d}"] = {key: value for key, value in own.items() if value}
    register(PREFIX + family_of(skeleton))
    config_class, _ = classes(family_of(skeleton))
    changed = copy.deepcopy(config.to_dict())
    changed |= {"num_hidden_layers": n_blocks, "per_layer_config": per_layer, "allow_global_per_layer_attribute_access": True}
    changed |= {"layer_types": [kind] * n_blocks} if kind else {}
    changed["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    changed.pop("model_type", None)
    with device:
        model: Any = AutoModelForCausalLM.from_config(config_class(**changed), dtype=dtype)  # type: ignore[no-untyped-call]
    return model.eval().requires_grad_(False)


def _heads(skeleton: Any, n_groups: int, n_all: int) -> dict[str, int]:
    """Heads of an attention that keeps so many groups of all; of one that goes as a whole, the groups are one item."""
    config = skeleton.config
    n_kv_heads = config.num_key_value_heads
    if n_all == 1:
        n_groups = n_kv_heads
    return {"num_attention_heads": config.num_attention_heads // n_kv_heads * n_groups, "num_key_value_heads": n_groups}
