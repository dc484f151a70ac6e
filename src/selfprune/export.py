"""Saves a pruned model as an ordinary Hugging Face checkpoint."""

import shutil
from pathlib import Path
from typing import Any

from selfprune.journal import disk_error


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes model and tokenizer so that `AutoModelForCausalLM.from_pretrained(folder)` loads them.

    The folder appears whole or not at all. Pruned weights are zeros in dense tensors; tied weights stay tied.

    Args:
        model: the Hugging Face model.
        tokenizer: its tokenizer.
        folder: where to; replaced if it exists.

    Raises:
        SelfpruneError: when the disk is full or the folder cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_error(folder, error) from error
    except Exception as error:
        # safetensors wraps a full disk in an error of its own
        shutil.rmtree(partial, ignore_errors=True)
        if "os error 28" in str(error).lower() or "no space" in str(error).lower():
            raise disk_error(folder, OSError(28, "No space left on device")) from error
        raise
