"""Lists the structures of a model: heads, channels and experts, with every slice of a parameter that goes with each.

Zeroing the reader's columns of an item gives the logits of the model without it, so that pruning and search see one matrix in
groups of columns; the other slices matter for what an item saves, and where the checkpoint is cut to its real size.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from selfprune.allocations.budget import ContextCosts
from selfprune.allocations.unit import Item, Unit
from selfprune.errors import ModelError
from selfprune.models.families import EXPERTS, FAMILIES, Experts, Sublayer
from selfprune.models.per_layer import PREFIX
from selfprune.models.units import find_blocks, list_units

SLIDING = "sliding_attention"
"""What configurations call an attention that looks back on a window."""
NAMES_OF_ITEMS = {Item.HEAD_GROUP: "heads", Item.CHANNEL: "channels", Item.EXPERT: "experts"}
WIDTHS_OF_HEADS = ("head_dim", "head_size")
"""What attention modules call the width of a head."""


@dataclass(frozen=True)
class Slice:
    """The rows, or the columns, of a parameter that belong to the items of a unit.

    Attributes:
        parameter: its name in the model.
        axis: along which the items lie.
        width: entries per item.
        start: where the first item begins.
    """

    parameter: str
    axis: int
    width: int
    start: int = 0


@dataclass(frozen=True)
class Structure:
    """A unit of heads or channels, and all that goes with its items.

    Attributes:
        unit: the unit.
        slices: of every parameter that loses something with an item; that of the reader comes last.
        cached_per_item: numbers of one token in the KV cache that go with an item; 0 of channels.
    """

    unit: Unit
    slices: tuple[Slice, ...]
    cached_per_item: int = 0

    @property
    def reader(self) -> Slice:
        """The columns of the matrix that reads the items."""
        return self.slices[-1]

    @property
    def counted(self) -> Slice:
        """What a checkpoint tells the number of items by: the reader, or of experts, which it may split, the router's rows."""
        return self.slices[0] if self.unit.item is Item.EXPERT else self.reader


def list_structures(model: nn.Module) -> tuple[Structure, ...]:
    """The heads, the channels and the experts of every block, in model order.

    Heads go by groups that share their keys and values (GQA), channels and experts one by one.

    Raises:
        ModelError: when the family has no entry, or a block does not look as its entry says.
    """
    family = family_of(model)
    if family not in FAMILIES:
        raise ModelError(
            f"heads and channels of models of the type {family} cannot be pruned: expected one of {', '.join(FAMILIES)}; choose "
            "a pruner of single weights, such as pruner=wanda"
        )
    path, blocks = find_blocks(model)
    found = []
    for index, block in enumerate(blocks):
        there = [sublayer for sublayer in FAMILIES[family] if _is_there(block, sublayer)]
        found += [_structure(f"{path}.{index}", index, block, sublayer) for sublayer in there]
        found += _experts(model, f"{path}.{index}", index, block, EXPERTS.get(family))
    return tuple(found)


def family_of(model: nn.Module) -> str:
    """The family of a model, whether its blocks are all of one width or not."""
    model_type: str = model.config.get_text_config().model_type  # type: ignore[operator, union-attr]
    return model_type.removeprefix(PREFIX)


def list_items(model: nn.Module, items: Collection[Item]) -> tuple[Unit, ...]:
    """The units whose items are of these kinds: one per linear weight, or the heads and channels.

    Raises:
        ModelError: when the weights of the blocks, or their heads and channels, are not understood.
    """
    if Item.WEIGHT in items:
        return list_units(model)
    units = tuple(structure.unit for structure in list_structures(model) if structure.unit.item in items)
    if not units:
        named = " and ".join(sorted(NAMES_OF_ITEMS[item] for item in items))
        raise ModelError(
            f"a model of the type {family_of(model)} has no {named} that can go; choose another pruner, as pruner=obs for heads "
            "and channels, or pruner=reap for experts"
        )
    return units


def context_costs(model: Any, context: int) -> ContextCosts:
    """The costs of one sequence of so many tokens; attentions with a sliding window see, and keep, no more than it.

    Args:
        model: of a family whose heads are understood, where `context` is above 0.
        context: tokens; 0 counts nothing.

    Raises:
        ModelError: when the family is not understood.
    """
    if not context:
        return ContextCosts()
    attentions = [structure for structure in list_structures(model) if structure.unit.item is Item.HEAD_GROUP]
    tokens = {structure.unit.name: attended_tokens(model.config, structure.unit.block, context) for structure in attentions}
    cached = {s.unit.name: s.cached_per_item * tokens[s.unit.name] for s in attentions}
    scored = {s.unit.name: 2 * 2 * s.unit.item_width * tokens[s.unit.name] for s in attentions}
    return ContextCosts(sum(cached[s.unit.name] * s.unit.n_items for s in attentions), cached, scored)


def attended_tokens(config: Any, block: int, context: int) -> int:
    """How many tokens the attention of a block looks back on."""
    text_config = config.get_text_config()
    kinds, window = getattr(text_config, "layer_types", None), getattr(text_config, "sliding_window", None)
    # without kinds a window holds for all blocks, unless it is switched off
    is_sliding = kinds[block] == SLIDING if kinds else getattr(text_config, "use_sliding_window", True)
    return min(context, window) if is_sliding and isinstance(window, int) else context


def _experts(model: Any, block_path: str, index: int, block: nn.Module, experts: Experts | None) -> list[Structure]:
    """The experts of a block, if it has any."""
    names = dict(block.named_parameters())
    if experts is None or f"{experts.path}.{experts.reader}" not in names:
        return []
    path = f"{experts.path}."
    reader = names[path + experts.reader]
    n_experts, n_out, _ = reader.shape
    parameters = [*(path + writer for writer in experts.writers), path + experts.reader]
    per_item = sum(names[name].numel() // n_experts for name in parameters)
    n_chosen = model.config.get_text_config().num_experts_per_tok
    kind = f"{experts.path}.{experts.reader.partition('.')[0]}"
    unit = Unit(
        f"{block_path}.{kind}",
        index,
        kind,
        n_experts,
        per_item,
        Item.EXPERT,
        f"{block_path}.{path}{experts.reader}",
        n_out,
        n_chosen,
    )
    return [Structure(unit, tuple(Slice(f"{block_path}.{name}", 0, 1) for name in parameters))]


def _is_there(block: nn.Module, sublayer: Sublayer) -> bool:
    """Whether a block has a sublayer, which may have been cut away but for a bias."""
    names = dict(block.named_parameters())
    return f"{sublayer.path}.{sublayer.reader}.weight".removeprefix(".") in names


def _structure(block_path: str, index: int, block: nn.Module, sublayer: Sublayer) -> Structure:
    owner = block.get_submodule(sublayer.path)
    path = f"{block_path}.{sublayer.path}" if sublayer.path else block_path
    reader = owner.get_submodule(sublayer.reader)
    n_columns, is_ffn = _n_in(reader), next(iter(sublayer.writers.values())).strip("[]")[0] == "c"
    widths, n_items = _item_widths(path, owner, sublayer, n_columns, is_ffn)
    slices = list(_slices(path, owner, sublayer, widths, n_items))
    slices.append(Slice(f"{path}.{sublayer.reader}.weight", _input_axis(reader), widths["reader"]))
    cached = widths.get("k", 0) + widths.get("v", 0)
    if sublayer.is_whole:
        cached *= n_items
        slices = [Slice(s.parameter, s.axis, s.width * n_items, s.start) for s in slices]
        widths, n_items = {"reader": n_columns}, 1
    parameters = dict(owner.named_parameters(path))
    per_item = sum(s.width * (parameters[s.parameter].numel() // parameters[s.parameter].shape[s.axis]) for s in slices)
    item = Item.CHANNEL if is_ffn else Item.HEAD_GROUP
    name = f"{block_path}.{sublayer.kind}"
    unit = Unit(name, index, sublayer.kind, n_items, per_item, item, f"{path}.{sublayer.reader}", widths["reader"])
    return Structure(unit, tuple(slices), cached)


def _item_widths(path: str, owner: nn.Module, sublayer: Sublayer, n_columns: int, is_ffn: bool) -> tuple[dict[str, int], int]:
    """What stands in the rows of a writer -> rows per item, and the number of items."""
    if is_ffn:
        return {"c": 1, "reader": 1}, n_columns
    head_width = next((n for name in WIDTHS_OF_HEADS if isinstance(n := getattr(owner, name, None), int)), 0)
    n_rows = sum(_n_out(owner.get_submodule(writer)) for writer in sublayer.writers)
    n_groups, rest = divmod(n_rows - n_columns, 2 * head_width) if head_width else (0, 0)
    if not n_groups or rest or n_columns % n_groups:
        raise ModelError(
            f"the attention {path} is not understood: expected queries as wide as {sublayer.reader} reads and keys and values "
            f"of whole heads, got {n_rows} rows for {n_columns} columns and heads of {head_width}; choose a pruner of "
            "single weights"
        )
    return {"q": n_columns // n_groups, "k": head_width, "v": head_width, "reader": n_columns // n_groups}, n_groups


def _slices(path: str, owner: nn.Module, sublayer: Sublayer, widths: dict[str, int], n_items: int) -> Iterator[Slice]:
    """The rows of the writers, and their biases."""
    for writer, rows in sublayer.writers.items():
        module, start = owner.get_submodule(writer), 0
        parts = [sum(widths[part] for part in rows[1:-1])] if rows.startswith("[") else [widths[part] for part in rows]
        for width in parts:
            yield Slice(f"{path}.{writer}.weight", 1 - _input_axis(module), width, start)
            if module.bias is not None:
                yield Slice(f"{path}.{writer}.bias", 0, width, start)
            start += width * n_items


def _input_axis(module: nn.Module) -> int:
    return 0 if isinstance(module, Conv1D) else 1


def _n_in(module: nn.Module) -> int:
    return int(module.weight.shape[_input_axis(module)])  # type: ignore[index]


def _n_out(module: nn.Module) -> int:
    return int(module.weight.shape[1 - _input_axis(module)])  # type: ignore[index]
