"""Tells which tensors of a checkpoint are units, by the names and shapes they have on disk, so that no architecture is needed.

A unit is a matrix `<list>.<number>.<kind>.weight`, or one of the stacked experts `<list>.<number>.<kind>` [E, O, I]. As in
`units`, routers are none: they have as many rows as there are experts beside them.

Limits: experts stacked along the rows of a matrix without the suffix `.weight` (DBRX) are no units here, and where stacked
experts have no gate (or are as wide as the hidden state) either axis could be their input, which is then unknown.

Shape suffixes: E experts, O out, I in.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

from selfprune.checkpoints.reader import Checkpoint
from selfprune.checkpoints.stored_tensors import BitmaskedTensor, StoredTensor
from selfprune.errors import ModelError

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
IN_A_LIST = re.compile(r"(.+?)\.(\d+)\.(.+)")
AnyTensor = StoredTensor | BitmaskedTensor


@dataclass(frozen=True)
class Place:
    """Where a tensor sits in a list of blocks.

    Attributes:
        path: of the list, such as `model.layers`.
        block: number in the list.
        kind: the rest of the name, without `.weight`.
    """

    path: str
    block: int
    kind: str


def find_units(checkpoint: Checkpoint) -> dict[Place, tuple[AnyTensor, int | None]]:
    """The units, in the order of the blocks, each with the axis of its inputs; None where that is unknown.

    Raises:
        ModelError: when the checkpoint is quantised or holds no unit.
    """
    blocks: dict[tuple[str, int], dict[str, AnyTensor]] = defaultdict(dict)
    for name, tensor in checkpoint.tensors.items():
        match = IN_A_LIST.fullmatch(name)
        if match and len(tensor.shape) > 1:
            _check_unquantised(checkpoint, tensor)
            if tensor.dtype in FLOATS:
                blocks[match[1], int(match[2])][match[3]] = tensor
    transposed = {path for (path, _), block in blocks.items() if any(_is_transposed(t, checkpoint) for t in block.values())}
    config = checkpoint.config.get("text_config") or checkpoint.config
    hidden_size = next((config[key] for key in ("hidden_size", "n_embd", "d_model") if key in config), None)
    units: dict[Place, tuple[AnyTensor, int | None]] = {}
    for (path, index), block in sorted(blocks.items()):
        axes = _units_of_block(block, path in transposed, hidden_size)
        for leaf in sorted(axes, key=lambda leaf: re.sub(r"\d+", lambda number: number[0].zfill(9), leaf)):
            units[Place(path, index, leaf.removesuffix(".weight"))] = block[leaf], axes[leaf]
    if not units:
        raise ModelError(
            f"{checkpoint.folder} holds no weight that could be pruned: expected matrices named <list>.<number>.<kind>.weight, "
            f"found {', '.join(list(checkpoint.tensors)[:3]) or 'no tensor'}; give the checkpoint of a language model"
        )
    return units


def _check_unquantised(checkpoint: Checkpoint, tensor: AnyTensor) -> None:
    """Refuses whole numbers in two dimensions or more, which are codes of quantised weights; causal masks [1, 1, T, T] pass."""
    if tensor.dtype not in (*FLOATS, "BOOL") and tensor.shape[0] > 1:
        raise ModelError(
            f"{checkpoint.folder} is a quantised checkpoint ({tensor.name} holds {tensor.dtype}), whose zeros are codes and no "
            "zero weights; give the unquantised one"
        )


def _is_transposed(tensor: AnyTensor, checkpoint: Checkpoint) -> bool:
    """Whether a matrix is stored [I, O], as `Conv1D` does: its bias is as long as its rows, which a square one leaves open."""
    bias = checkpoint.tensors.get(f"{tensor.name.removesuffix('.weight')}.bias")
    is_told = len(tensor.shape) == 2 and tensor.shape[0] != tensor.shape[1]
    return is_told and bias is not None and bias.shape == tensor.shape[1:]


def _units_of_block(block: dict[str, AnyTensor], is_transposed: bool, hidden_size: int | None) -> dict[str, int | None]:
    """Leaf name -> axis of the inputs, for the units of one block."""
    axes: dict[str, int | None] = {}
    n_experts: dict[str, int] = {}
    for experts, shapes in _stacks(block).items():
        found = _input_axes(list(shapes.values()), hidden_size)
        if found:
            axes |= dict.fromkeys(shapes, found.pop() if len(found) == 1 else None)
            n_experts[experts] = next(iter(shapes.values()))[0]
    for experts, _ in {(match[1], match[2]) for leaf in block if (match := IN_A_LIST.fullmatch(leaf))}:
        n_experts[experts] = n_experts.get(experts, 0) + 1
    for leaf, tensor in block.items():
        name = leaf.removesuffix(".weight").rpartition(".")[2]
        if len(tensor.shape) != 2 or not leaf.endswith(".weight") or "embed" in name or "bias" in name:
            continue
        n_outputs = tensor.shape[1 if is_transposed else 0]
        is_router = any(
            n_outputs == n and leaf.startswith(experts[: experts.rfind(".") + 1]) and not IN_A_LIST.fullmatch(leaf)
            for experts, n in n_experts.items()
        )
        if n_outputs > 1 and not is_router:
            axes[leaf] = 0 if is_transposed else 1
    return axes


def _stacks(block: dict[str, AnyTensor]) -> dict[str, dict[str, tuple[int, ...]]]:
    """The module that holds them -> leaf name -> shape, for the weights [E, ., .] of one block."""
    stacks: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for leaf, tensor in block.items():
        if len(tensor.shape) == 3:
            stacks[leaf.removesuffix(".weight").rpartition(".")[0]][leaf] = tensor.shape
    return stacks


def _input_axes(shapes: list[tuple[int, ...]], hidden_size: int | None) -> set[int]:
    """The axes that can be the inputs of stacked experts: one weight writes the hidden state, the others read it.

    A gated expert computes twice as many numbers from the hidden state as it reads to write it; one without a gate, as many.
    """
    axes = set()
    for n_in, n_out in ((2, 1), (1, 2)):
        for i, writer in enumerate(shapes):
            readers = shapes[:i] + shapes[i + 1 :]
            widths = sum(shape[n_out] for shape in readers)
            fits = writer[n_out] == hidden_size and all(s[n_in] == hidden_size and s[0] == writer[0] for s in readers)
            if readers and fits and widths in (writer[n_in], 2 * writer[n_in]):
                axes.add(n_in)
    return axes
