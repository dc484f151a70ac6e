"""Saves a pruned model that is held as a whole as an ordinary Hugging Face checkpoint."""

import json
from pathlib import Path

from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.storage.whole_files import RESUME_A_RUN, whole_folder


def save_checkpoint(checkpoint: PrunedCheckpoint, folder: Path) -> None:
    """Writes a checkpoint so that `AutoModelForCausalLM.from_pretrained(folder)` loads it.

    The folder appears whole or not at all. Pruned weights are zeros in dense tensors; tied weights stay tied.

    Args:
        checkpoint: of the pruned model.
        folder: where to; replaced if it exists.

    Raises:
        SelfpruneError: when the disk is full or the folder cannot be written.
    """
    with whole_folder(folder) as partial:
        checkpoint.write(partial, RESUME_A_RUN)


def holds_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a configuration, a tokenizer and all files of weights that its index names."""
    index = folder / "model.safetensors.index.json"
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else {"model.safetensors"}
        return all((folder / name).is_file() for name in (*names, "config.json", "tokenizer_config.json"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
