"""Leaves out blocks of which nothing is left, and numbers the others anew.

A block without attention and FFN hands its input on, so that the model without it gives the same logits, keeps no cache for it,
and may be one that the family's own class loads.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfprune.checkpoints.reader import SINGLE, open_file
from selfprune.checkpoints.stored_tensors import StoredTensor
from selfprune.checkpoints.widths import config_number, own_name
from selfprune.storage.tensor_file import write_tensors

PER_BLOCK = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""What configurations call lists with an entry for each block."""


def gone_blocks(written: Mapping[str, StoredTensor], n_blocks: int, blocks_path: str) -> list[int]:
    """The blocks of which neither a matrix nor a bias is left; one block stays in any case.

    Args:
        written: name -> tensor, of all that were written.
        n_blocks: of the model.
        blocks_path: of the blocks' list in the model.
    """
    left = {_number(name, blocks_path) for name, tensor in written.items() if len(tensor.shape) > 1 or name.endswith(".bias")}
    gone = [block for block in range(n_blocks) if block not in left]
    return gone[1:] if len(gone) == n_blocks else gone


def renumbered_config(changed: Mapping[str, Any], content: Mapping[str, Any], gone: Sequence[int]) -> dict[str, Any]:
    """What changes in a configuration without these blocks, besides their widths.

    Args:
        changed: values that change in any case.
        content: the config.json.
        gone: blocks that are left out.
    """
    n_blocks = config_number(content, "num_hidden_layers") or 0
    lists = {name: content[name] for name in PER_BLOCK if isinstance(content.get(name), list) and len(content[name]) == n_blocks}
    left = {name: [value for i, value in enumerate(values) if i not in gone] for name, values in lists.items()}
    return {**changed, **left, own_name(content, "num_hidden_layers"): n_blocks - len(gone)}


def renumber_files(folder: Path, files: Sequence[str], blocks_path: str, gone: Sequence[int], remedy: str) -> list[str]:
    """Writes the files of weights without these blocks; the old ones stay beside where they have other names.

    Args:
        folder: of the checkpoint.
        files: of weights, in order.
        blocks_path: of the blocks' list in the model.
        gone: blocks that are left out.
        remedy: what to do when that fails, as `disk_error` takes it.

    Returns:
        the new files, in order.

    Raises:
        SelfpruneError: when the disk is full or the folder cannot be written.
    """
    names = {file: [n for n in open_file(folder / file) if _number(n, blocks_path) not in gone] for file in files}
    left = [file for file in files if names[file]]
    renamed = {
        file: SINGLE if file == SINGLE else f"model-{i + 1:05d}-of-{len(left):05d}.safetensors" for i, file in enumerate(left)
    }
    for file in left:
        stored = open_file(folder / file)
        tensors = {_renumbered(name, blocks_path, gone): stored[name].read() for name in names[file]}
        write_tensors(folder / renamed[file], tensors, {"format": "pt"}, remedy)
    return list(renamed.values())


def _number(name: str, blocks_path: str) -> int | None:
    """The block of a tensor, whose name may lack the decoder's prefix; None outside the blocks."""
    found = re.search(rf"(?:^|\.){re.escape(blocks_path.rpartition('.')[2])}\.(\d+)\.", name)
    return int(found[1]) if found else None


def _renumbered(name: str, blocks_path: str, gone: Sequence[int]) -> str:
    number = _number(name, blocks_path)
    if number is None:
        return name
    path = blocks_path.rpartition(".")[2]
    return name.replace(f"{path}.{number}.", f"{path}.{number - sum(block < number for block in gone)}.", 1)
