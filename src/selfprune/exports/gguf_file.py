"""Writes a Llama, cut or not, as one GGUF file for llama.cpp, whose architecture `deci` takes a width for each block.

The queries and keys of a head stand there in another order than in a checkpoint, since RoPE turns neighbours in llama.cpp, and
halves in transformers; the names are those of the `gguf` package.

Limits: Llamas, and Mistrals that look back on everything, without biases and with plain RoPE; tokenizers of byte-level BPE.

Shape suffixes: O out, I in.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer

from selfprune.checkpoints.reader import Checkpoint, open_tensors
from selfprune.checkpoints.stored_tensors import StoredTensor
from selfprune.checkpoints.widths import Width, block_widths
from selfprune.errors import ModelError
from selfprune.models.loading import register_per_layer
from selfprune.models.per_layer import PREFIX

ARCHITECTURE = "deci"
FAMILIES = ("llama", "mistral")
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
"""Name in a checkpoint, of a block's tensor without its path -> name in the file."""
BLOCK = "model.layers."
NOTHING = 32
"""Channels of zeros where an FFN is gone: a block of none loses its attention, too (llama.cpp of cyllama 0.2.18)."""
FORMATS = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32"}
SPLITS = {
    json.dumps(["ByteLevel"]): "gpt-2",
    json.dumps(["Digits", "ByteLevel"]): "smollm",
}
"""How a tokenizer splits a text before it merges bytes -> what llama.cpp calls that."""


def write_gguf(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file.

    Args:
        checkpoint: the model's folder.
        path: the file, which is replaced.

    Raises:
        ModelError: when a model cannot be written so, or the `gguf` package is missing.
        OSError: when the disk is full or the folder cannot be written.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError("a GGUF file is written by the package gguf, which is not installed: pip install gguf") from error
    config, tensors = checkpoint.config, open_tensors(checkpoint.folder)
    widths = _checked_widths(config, tensors)
    writer = gguf.GGUFWriter(path, ARCHITECTURE, use_temp_file=True)
    _write_shape(writer, config, widths, gguf)
    _write_tokenizer(writer, checkpoint.folder, config, gguf)
    # the norm of an attention that is gone feeds nothing
    gone = {f"{BLOCK}{width.block}.input_layernorm.weight" for width in widths if not width.n_heads}
    for name, stored in tensors.items():
        if name in gone:
            continue
        kind = getattr(gguf.GGMLQuantizationType, FORMATS[stored.dtype] if len(stored.shape) > 1 else "F32")
        content = gguf.quants.quantize(_ordered(name, stored.read(), widths, config), kind)
        writer.add_tensor(_name(name), content, raw_dtype=kind)
    for width in (width for width in widths if not width.n_channels):
        for kind, shape in (("gate", (NOTHING, -1)), ("up", (NOTHING, -1)), ("down", (-1, NOTHING))):
            of_nothing = np.zeros([config["hidden_size"] if n < 0 else n for n in shape], dtype=np.float32)
            writer.add_tensor(f"blk.{width.block}.ffn_{kind}.weight", of_nothing)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _checked_widths(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> list[Width]:
    """The widths of the blocks of a model that can be written."""
    family = str(config.get("model_type", "")).removeprefix(PREFIX)
    why = ""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    strange = sorted(name for name in tensors if _known(name) is None)
    if family not in FAMILIES:
        why = f"models of the type {family or 'unknown'} have no such form; those that can be written are {', '.join(FAMILIES)}"
    elif family == "mistral" and config.get("sliding_window"):
        why = f"its attention looks back on a window of {config['sliding_window']} tokens, which the form does not know"
    elif rope.get("rope_type", rope.get("type", "default")) != "default":
        why = f"its positions are stretched ({rope.get('rope_type', rope.get('type'))}), which is not written yet"
    elif strange:
        why = f"it holds {strange[0]}, which the form does not know"
    elif wrong := sorted({tensor.dtype for tensor in tensors.values()} - FORMATS.keys()):
        why = f"its weights are {', '.join(wrong)}; {', '.join(FORMATS)} can be written"
    widths = block_widths(config)
    if not why and not widths:
        why = "its config.json does not name its widths"
    if why:
        raise ModelError(f"this model cannot be written as GGUF: {why}")
    return widths


def _known(name: str) -> str | None:
    """What a tensor is called in the file, without the number of its block."""
    return NAMES.get(name.removeprefix(BLOCK).partition(".")[2] if name.startswith(BLOCK) else name)


def _name(name: str) -> str:
    known = _known(name)
    assert known is not None
    return f"blk.{name.removeprefix(BLOCK).partition('.')[0]}.{known}" if name.startswith(BLOCK) else known


def _write_shape(writer: Any, config: Mapping[str, Any], widths: list[Width], gguf: Any) -> None:
    head_dim = _head_dim(config)
    rope = config.get("rope_parameters") or {}
    writer.add_block_count(len(widths))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length([width.n_channels or NOTHING for width in widths])
    writer.add_head_count([width.n_heads for width in widths])
    writer.add_head_count_kv([width.n_kv_heads for width in widths])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _write_tokenizer(writer: Any, folder: Path, config: Mapping[str, Any], gguf: Any) -> None:
    register_per_layer(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    content = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    split = SPLITS.get(json.dumps(_steps(content.get("pre_tokenizer"))))
    if content.get("model", {}).get("type") != "BPE" or split is None or content.get("normalizer"):
        raise ModelError(
            f"the tokenizer of {folder} cannot be written as GGUF: expected byte-level BPE, with digits split off or not, and no "
            "normaliser; convert the model with the scripts of llama.cpp, which know more"
        )
    added, special = tokenizer.get_added_vocab(), set(tokenizer.all_special_ids)
    named = {index: token for token, index in tokenizer.get_vocab().items()}
    kinds = gguf.TokenType
    tokens, types = [], []
    for index in range(config["vocab_size"]):
        tokens.append(named.get(index, f"[PAD{index}]"))
        is_added = named.get(index) in added
        of_added = kinds.CONTROL if index in special else kinds.USER_DEFINED
        types.append(kinds.UNUSED if index not in named else of_added if is_added else kinds.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name, index in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id), ("pad", tokenizer.pad_token_id)):
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    begins = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _steps(pre_tokenizer: Any) -> list[str]:
    """The steps by which a text is split, one after the other."""
    steps = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return [step["type"] for step in steps]


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _ordered(name: str, tensor: Tensor, widths: list[Width], config: Mapping[str, Any]) -> NDArray[np.float32]:
    """The numbers of a tensor in the order of the file."""
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        width = widths[int(name.removeprefix(BLOCK).partition(".")[0])]
        n_heads = width.n_heads if "q_proj" in name else width.n_kv_heads
        tensor = tensor.reshape(n_heads, 2, _head_dim(config) // 2, -1).transpose(1, 2).reshape(tensor.shape)
    numbers: NDArray[np.float32] = tensor.to(torch.float32).contiguous().numpy()
    return numbers
