"""A GGUF file as a folder of a Hugging Face checkpoint: transformers dequantises it, once, and all else reads the folder.

Weights that were quantised are written in bfloat16, whose rounding is a small part of what quantising took; others keep their
format.

Limits: the architectures and kinds of quantisation that transformers reads. The folder takes two bytes for every parameter, in
the cache of Hugging Face, until somebody removes it.
"""

import hashlib
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfprune.errors import ModelError
from selfprune.storage.disk import free_bytes
from selfprune.storage.whole_files import whole_folder, write_whole

logger = logging.getLogger(__name__)

SUFFIX = ".gguf"
FORMATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Kinds of tensors that are not quantised."""
TO_FREE = "free some of it, or let HF_HOME name a folder on another disk"


def dequantised(path: Path) -> Path:
    """The folder of a GGUF file, which is written where it is not there yet; another version of the file has another.

    Args:
        path: of the file.

    Raises:
        ModelError: when it cannot be read, or the disk has no room.
    """
    folder, record = _places(path)
    if record.is_file() and (folder / "config.json").is_file():
        return folder
    kinds, n_weights = _contents(path)
    dtype = FORMATS[min(kinds)] if kinds.keys() <= FORMATS.keys() and len(kinds) == 1 else torch.bfloat16
    n_bytes = n_weights * dtype.itemsize
    if n_bytes > free_bytes(folder):
        raise ModelError(
            f"model.path={path} takes {n_bytes / 1e9:.2f} GB in {folder.parent} once it is dequantised, and "
            f"{free_bytes(folder) / 1e9:.2f} GB are free; {TO_FREE}"
        )
    logger.info("dequantising %s into %s (%.2f GB)", path, folder, n_bytes / 1e9)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype, **_plainly())
    except Exception as error:  # a file of another program raises anything
        raise ModelError(
            f"model.path={path} cannot be read as a GGUF file by transformers {transformers.__version__} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); give the model's folder or its hub id instead"
        ) from error
    # the weights are plain by now, but a model that remembers its quantiser refuses to be saved
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with whole_folder(folder, TO_FREE) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    write_whole(record, json.dumps(kinds), TO_FREE)
    return folder


def _places(path: Path) -> tuple[Path, Path]:
    """The folder of a file as it is now, and beside it what was in the file, since reading that takes seconds."""
    state = path.stat()
    named = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {transformers.__version__}"
    name = f"{path.stem}-{hashlib.sha256(named.encode()).hexdigest()[:16]}"
    cache = Path(constants.HF_HOME) / "selfprune"
    return cache / name, cache / f"{name}.json"


def _plainly() -> dict[str, Any]:
    """Asks for plain weights, which transformers from 5 on leaves packed where it has kernels for them."""
    kind = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": kind(dequantize=True)} if kind else {}


def doubt_of_gguf(path: Path) -> str:
    """What is to be known of results with a model that was dequantised, a paragraph; empty where nothing was quantised."""
    kinds = Counter[str](json.loads(_places(path)[1].read_bytes()))
    if kinds.keys() <= FORMATS.keys():
        return ""
    told = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    return (
        f"{path} was dequantised ({told} matrices): the dense model of this report is what quantising left of the original, and "
        "the pruned one is not quantised"
    )


def _contents(path: Path) -> tuple[Counter[str], int]:
    """How many matrices there are of every kind, and how many weights in all."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(
            f"model.path={path} needs the package gguf, which is not installed; install it with `pip install 'selfprune[gguf]'`"
        ) from error
    try:
        tensors = GGUFReader(path).tensors
    except Exception as error:  # whatever a damaged file makes of itself
        raise ModelError(
            f"model.path={path} should be a GGUF file, but cannot be read as one ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); fetch it again"
        ) from error
    kinds = Counter(tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1)
    if not kinds:
        raise ModelError(f"model.path={path} holds no matrices; give the GGUF file of a language model")
    return kinds, sum(int(tensor.n_elements) for tensor in tensors)
