"""Lists the units of a model and gives their weights, found by structure and not by a table of names.

Experts that a model stores as (expert, in, out), as GPT-OSS and Llama 4 do, are laid out in memory as (expert, out, in), which
the model does not notice; so every matrix is a view.

Shape suffixes: O out, I in, E experts, C items, W columns per item.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from selfprune.allocations.unit import Item, Unit
from selfprune.errors import ModelError

PRUNABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_UNLISTED_FRACTION = 0.1
CHOSEN_EXPERTS = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k")
"""What model configurations call the number of experts that a token is sent to."""


def find_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The path of the decoder blocks' list and the blocks themselves.

    They are the longest list of like modules beside the token embedding; so vision towers and lists of experts never win.

    Raises:
        ModelError: when there is no such list.
    """
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embedding = None
    path = next((name for name, module in model.named_modules() if module is embedding), "")
    while path:
        path = path.rpartition(".")[0]
        lists = dict(_outermost_lists(model.get_submodule(path), path))
        if lists:
            longest = max(lists, key=lambda name: len(lists[name]))
            return longest, list(lists[longest])
    found = [
        f"{n}: {len(m)} of {sorted({type(x).__name__ for x in m})}"
        for n, m in model.named_modules()
        if isinstance(m, nn.ModuleList)
    ]
    raise ModelError(
        f"the decoder blocks of {type(model).__name__} were not found: expected a list of modules of one class with linear "
        f"layers beside the token embedding, found {'; '.join(found[:4]) or 'no list of modules'}; selfprune cannot prune this "
        "architecture"
    )


def list_units(model: nn.Module) -> tuple[Unit, ...]:
    """One unit per linear weight of every decoder block, fused experts being one unit per parameter; routers are left out.

    Raises:
        ModelError: when the weights of the blocks are not understood.
    """
    path, blocks = find_blocks(model)
    units, seen = [], set()
    hidden_size = _hidden_size(model)
    if hidden_size is None:
        raise ModelError(
            f"the configuration of {type(model).__name__} should say how wide its hidden states are, as hidden_size, and "
            "does not; selfprune cannot prune this architecture"
        )
    for index, block in enumerate(blocks):
        weights = dict(_prunable_weights(block, hidden_size))
        _check_understood(f"{path}.{index}", block, weights)
        for kind, weight in weights.items():
            if id(weight) in seen:
                raise ModelError(
                    f"the weight {path}.{index}.{kind} is shared between blocks, so it cannot have a sparsity per block"
                )
            seen.add(id(weight))
            units.append(Unit(f"{path}.{index}.{kind}", index, kind, weight.numel()))
    return tuple(units)


def weight_view(model: nn.Module, unit: Unit) -> Tensor:
    """The unit's matrix [O, I], which shares the model's memory; fused experts [E, O, I] become [E*O, I].

    Those that are stored as [E, I, O] must have been laid out by `lay_out_experts`, else it is a copy.
    """
    return weight_matrix(model, unit, stored_weight(model, unit).detach())


def stored_weight(model: nn.Module, unit: Unit) -> nn.Parameter:
    """The unit's parameter as the model stores it."""
    owner = _owner(model, unit)
    weight: nn.Parameter = owner if isinstance(owner, nn.Parameter) else owner.weight  # type: ignore[assignment]
    return weight


def weight_matrix(model: nn.Module, unit: Unit, stored: Tensor) -> Tensor:
    """The unit's weight, or a tensor stored like it (its gradient), seen as a matrix [O, I]."""
    owner = _owner(model, unit)
    if isinstance(owner, nn.Parameter):
        parent = model.get_submodule(unit.matrix.rpartition(".")[0])
        return (stored.transpose(1, 2) if _experts(parent, _hidden_size(model))[1] else stored).flatten(0, 1)
    return stored.T if isinstance(owner, Conv1D) else stored


def n_row_groups(model: nn.Module, unit: Unit) -> int:
    """How many matrices are stacked in `weight_view`: the number of fused experts, else 1."""
    owner = _owner(model, unit)
    return owner.shape[0] if isinstance(owner, nn.Parameter) else 1


def has_transposed_experts(model: nn.Module) -> bool:
    """Whether experts are stored as (expert, in, out)."""
    return any(_experts(module, _hidden_size(model))[1] for module in model.modules())


def lay_out_experts(model: nn.Module) -> None:
    """Lets the memory of experts that are stored as (expert, in, out) hold them as (expert, out, in), one parameter at a time."""
    for module in model.modules():
        weights, is_transposed = _experts(module, _hidden_size(model))
        for weight_EIO in weights.values() if is_transposed else ():
            weight_EIO.data = weight_EIO.data.transpose(1, 2).contiguous().transpose(1, 2)


def n_parameters(model: nn.Module) -> int:
    """All parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def token_share(model: Any, unit: Unit) -> Fraction:
    """The share of all tokens that reaches a unit: 1, or that of the experts which each token is sent to.

    Raises:
        ModelError: when the model's configuration does not say how many experts that are.
    """
    n_experts = n_row_groups(model, unit)
    if n_experts == 1:
        block, parts = model.get_submodule(unit.name.removesuffix(f".{unit.kind}")), unit.kind.split(".")
        owners = [block.get_submodule(".".join(parts[:n])) for n in range(1, len(parts))]
        n_experts = max((len(owner) for owner in owners if isinstance(owner, nn.ModuleList)), default=1)
    if n_experts == 1:
        return Fraction(1)
    config = model.config.get_text_config()
    n_chosen = next((n for name in CHOSEN_EXPERTS if isinstance(n := getattr(config, name, None), int)), None)
    if n_chosen is None:
        raise ModelError(
            f"the share of tokens that reaches {unit.name} is unknown: expected the number of experts per token in the model's "
            f"configuration as one of {', '.join(CHOSEN_EXPERTS)}; its FLOPs and latencies cannot be counted, so choose another "
            "budget.measure"
        )
    return min(Fraction(1), Fraction(n_chosen, n_experts))


def by_item(unit: Unit, weight_OI: Tensor) -> Tensor:
    """The matrix as pruners take it: [O, I] of single weights, else [O, C, W], the W columns of each of C items together.

    Of experts, whose matrices are stacked, W are the columns of each.
    """
    if unit.item is Item.EXPERT:
        return weight_OI.reshape(unit.n_items, unit.item_width, -1).transpose(0, 1)
    return weight_OI if unit.item is Item.WEIGHT else weight_OI.reshape(-1, unit.n_items, unit.item_width)


def spread(unit: Unit, per_item: Tensor) -> Tensor:
    """What is known of each item, for the weights [O, I]: as it is of single weights, else for the reader's columns [1, I].

    Of experts, whose matrices are stacked, for its rows [O, 1].
    """
    if unit.item is Item.EXPERT:
        return per_item.repeat_interleave(unit.item_width)[:, None]
    return per_item if unit.item is Item.WEIGHT else per_item.repeat_interleave(unit.item_width)[None]


def _owner(model: nn.Module, unit: Unit) -> nn.Module | nn.Parameter:
    """The module of a unit's matrix, or the parameter where experts are fused."""
    parent, _, name = unit.matrix.rpartition(".")
    owner: nn.Module | nn.Parameter = getattr(model.get_submodule(parent), name)
    return owner


def _outermost_lists(module: nn.Module, path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of like modules with linear layers inside them, those within other lists left out."""
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if not isinstance(child, nn.ModuleList):
            yield from _outermost_lists(child, child_path)
        elif len({type(member) for member in child}) == 1 and any(map(_holds_linear, child)):
            yield child_path, child


def _holds_linear(block: nn.Module) -> bool:
    return any(name and isinstance(module, nn.Linear | Conv1D) for name, module in block.named_modules())


def _hidden_size(model: nn.Module) -> int | None:
    """The width of the hidden states, where the configuration tells it."""
    found = getattr(model.config.get_text_config(), "hidden_size", None)  # type: ignore[operator, union-attr]
    return found if isinstance(found, int) else None


def _prunable_weights(block: nn.Module, hidden_size: int) -> Iterator[tuple[str, Tensor]]:
    """Kind -> weight of one block."""
    fused = {path: weights for path, m in block.named_modules() if (weights := _experts(m, hidden_size)[0])}
    n_experts = {path[: path.rfind(".") + 1]: next(iter(weights.values())).shape[0] for path, weights in fused.items()}
    n_experts |= {path[: path.rfind(".") + 1]: len(m) for path, m in block.named_modules() if isinstance(m, nn.ModuleList)}
    for path, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            n_outputs = module.nf if isinstance(module, Conv1D) else module.out_features
            is_router = any(n_outputs == n and path.startswith(siblings) for siblings, n in n_experts.items())
            if n_outputs > 1 and not is_router:
                yield path, module.weight
        for name, weight in fused.get(path, {}).items():
            yield f"{path}.{name}", weight


def _experts(module: nn.Module, hidden_size: int | None) -> tuple[dict[str, nn.Parameter], bool]:
    """The stacked weights of a module, of which the first reads the hidden state and the last writes it; whether [E, I, O]."""
    weights = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
    if len(weights) < 2:
        return {}, False
    first, *_, last = weights.values()
    if not getattr(module, "is_transposed", False) and first.shape[2] == last.shape[1] == hidden_size:
        return weights, False
    return (weights, True) if first.shape[1] == last.shape[2] == hidden_size else ({}, False)


def _check_understood(path: str, block: nn.Module, weights: dict[str, Tensor]) -> None:
    """Checks that nearly all of a block's matrix weights became units."""
    wrong = sorted({str(weight.dtype) for weight in weights.values() if weight.dtype not in PRUNABLE_DTYPES})
    if wrong:
        raise ModelError(
            f"the weights of {path} must be floating-point numbers of 16 to 64 bits, got {', '.join(wrong)}; give an "
            "unquantised checkpoint"
        )
    listed = {id(weight) for weight in weights.values()}
    unlisted = {name: p for name, p in block.named_parameters() if p.ndim > 1 and id(p) not in listed}
    n_unlisted = sum(p.numel() for p in unlisted.values())
    if n_unlisted > MAX_UNLISTED_FRACTION * (n_unlisted + sum(weight.numel() for weight in weights.values())):
        found = "; ".join(f"{name} {tuple(p.shape)}" for name, p in unlisted.items())
        raise ModelError(
            f"the block {path} ({type(block).__name__}) is not understood: expected linear layers and fused experts stored "
            "(expert, out, in) or (expert, in, out), found more than a tenth of its weights elsewhere: "
            f"{found}; selfprune cannot prune this architecture"
        )
