"""Causal language models whose blocks differ in their numbers of heads and channels, as structured pruning leaves them.

This file needs torch and transformers alone, so that a copy of it beside a checkpoint builds the model anywhere:
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`. In a process that imports selfprune, `register` does
without trust.

The configuration is that of the family with `per_layer_config`, which transformers has known since 5.15: for each block its
`num_attention_heads`, `num_key_value_heads` and `intermediate_size`, in `skip` the sublayers that are gone, and in `biased`
matrices that have a bias where the family has none.
Caches and RoPE read it; the layers of the families do not, and are built anew from it here.

Limits: an attention that is gone keeps one KV head of zeros in the cache, which tells its length by that of any layer.
"""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.pytorch_utils import Conv1D

PREFIX = "per_layer_"
LIKE_LLAMA = ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
"""Families whose blocks take their widths from a configuration, and call their parts as Llama does."""


@dataclass(frozen=True)
class Layout:
    """Where the matrices of a family's blocks are, of blocks that are built whole and narrowed afterwards.

    Attributes:
        blocks: path of the blocks' list.
        attention: path of the attention in a block.
        writers: its matrices that write queries, keys and values -> how many of these each writes.
        reader: its matrix that reads what the heads put out.
        ffn: path of the FFN in a block; empty for the block itself.
        ffn_writer: matrix that writes the channels.
        ffn_reader: matrix that reads them.
    """

    blocks: str
    attention: str
    writers: dict[str, int]
    reader: str
    ffn: str
    ffn_writer: str
    ffn_reader: str


NARROWED = {
    "gpt2": Layout("transformer.h", "attn", {"c_attn": 3}, "c_proj", "mlp", "c_fc", "c_proj"),
    "gpt_neox": Layout("gpt_neox.layers", "attention", {"query_key_value": 3}, "dense", "mlp", "dense_h_to_4h", "dense_4h_to_h"),
    "opt": Layout("model.decoder.layers", "self_attn", {"q_proj": 1, "k_proj": 1, "v_proj": 1}, "out_proj", "", "fc1", "fc2"),
}
OF_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")
"""Families whose blocks take their numbers of experts from a configuration, and call their attention as Llama does."""
FAMILIES = (*LIKE_LLAMA, *OF_EXPERTS, *NARROWED)


class Constant(nn.Module):
    """What is left of a matrix without inputs: its bias.

    Args:
        bias: it.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros_like(bias))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The bias in the shape of the hidden states [N, T, D]."""
        return self.bias.expand_as(hidden_states)


class Nothing(nn.Module):
    """What is left of a matrix without inputs and without a bias."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Zeros in the shape of the hidden states [N, T, D]."""
        return torch.zeros_like(hidden_states)


def _left_of(reader: Any) -> nn.Module:
    return Nothing() if reader.bias is None else Constant(reader.bias)


class NoAttention(nn.Module):
    """Stands where an attention was: adds nothing but a bias, and tells the cache how many tokens it has seen.

    Args:
        attention: what was there.
        reader: what the family calls the matrix whose output it added.
    """

    def __init__(self, attention: nn.Module, reader: str) -> None:
        super().__init__()
        self.layer_idx: Any = attention.layer_idx
        self.head_dim: Any = attention.head_dim if hasattr(attention, "head_dim") else attention.head_size
        self._reader = reader
        setattr(self, reader, _left_of(getattr(attention, reader)))

    def forward(
        self, hidden_states: Tensor, past_key_values: Any = None, layer_past: Any = None, **_: Any
    ) -> tuple[Tensor, None]:
        """The bias, or zeros, in the shape of the hidden states [N, T, D]."""
        cache = layer_past if past_key_values is None else past_key_values
        if cache is not None:
            n, t = hidden_states.shape[:2]
            nothing = hidden_states.new_zeros(n, 1, t, self.head_dim)
            cache.update(nothing, nothing, self.layer_idx)
        return getattr(self, self._reader)(hidden_states), None


class NoFFN(nn.Module):
    """Stands where an FFN was: adds nothing but a bias.

    Args:
        ffn: what was there.
        reader: what the family calls the matrix whose output it added.
    """

    def __init__(self, ffn: nn.Module, reader: str) -> None:
        super().__init__()
        self._reader = reader
        setattr(self, reader, _left_of(getattr(ffn, reader)))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The bias, or zeros, in the shape of the hidden states [N, T, D]."""
        left: Tensor = getattr(self, self._reader)(hidden_states)
        return left


def class_names(family: str) -> tuple[str, str]:
    """What the configuration and the model of a family are called here."""
    stem = "PerLayer" + "".join(part.capitalize() for part in family.split("_"))
    return f"{stem}Config", f"{stem}ForCausalLM"


def _build_blocks(model: Any, family: str) -> None:
    """Replaces the blocks by ones that are as wide as the configuration says of each."""
    if family in NARROWED:
        layout = NARROWED[family]
        for block, config in zip(model.get_submodule(layout.blocks), model.config.per_layer_config, strict=True):
            _narrow(block, config, layout)
        return
    blocks = model.model.layers
    for index, config in enumerate(model.config.per_layer_config):
        blocks[index] = type(blocks[index])(config, index)
        for path in getattr(config, "biased", ()):
            matrix = blocks[index].get_submodule(path)
            matrix.bias = nn.Parameter(torch.zeros(matrix.out_features, dtype=matrix.weight.dtype))
        gone = getattr(config, "skip", ())
        if "attention" in gone:
            blocks[index].self_attn = NoAttention(blocks[index].self_attn, "o_proj")
        if "mlp" in gone:
            blocks[index].mlp = NoFFN(blocks[index].mlp, "down_proj")


def _narrow(block: Any, config: Any, layout: Layout) -> None:
    """Gives a block that was built whole the widths of its configuration."""
    attention, gone = getattr(block, layout.attention), getattr(config, "skip", ())
    if "attention" in gone:
        setattr(block, layout.attention, NoAttention(attention, layout.reader))
    else:
        head_width = attention.head_dim if hasattr(attention, "head_dim") else attention.head_size
        n_columns = config.num_attention_heads * head_width
        for writer, n_parts in layout.writers.items():
            setattr(attention, writer, _resized(getattr(attention, writer), n_out=n_parts * n_columns))
        setattr(attention, layout.reader, _resized(getattr(attention, layout.reader), n_in=n_columns))
        attention.num_heads, attention.split_size = config.num_attention_heads, n_columns
    ffn = getattr(block, layout.ffn) if layout.ffn else block
    if "mlp" not in gone:
        setattr(ffn, layout.ffn_writer, _resized(getattr(ffn, layout.ffn_writer), n_out=config.intermediate_size))
        setattr(ffn, layout.ffn_reader, _resized(getattr(ffn, layout.ffn_reader), n_in=config.intermediate_size))
    elif layout.ffn:
        setattr(block, layout.ffn, NoFFN(ffn, layout.ffn_reader))
    else:
        setattr(block, layout.ffn_reader, _left_of(getattr(block, layout.ffn_reader)))
        setattr(block, layout.ffn_writer, nn.Identity())


def _resized(matrix: Any, n_in: int = 0, n_out: int = 0) -> nn.Module:
    """A matrix of the same kind with other numbers of inputs or outputs."""
    dtype = matrix.weight.dtype
    if isinstance(matrix, Conv1D):
        resized: nn.Module = Conv1D(n_out or matrix.nf, n_in or matrix.nx).to(dtype)  # type: ignore[no-untyped-call]
        return resized
    return nn.Linear(n_in or matrix.in_features, n_out or matrix.out_features, matrix.bias is not None, dtype=dtype)


@cache
def classes(family: str) -> tuple[Any, Any]:
    """The classes of a family, made when one of them is asked for."""
    stock_config: Any = CONFIG_MAPPING[family]
    stock_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[stock_config]
    config_name, model_name = class_names(family)
    # what checkpoints of the family call their tensors otherwise is asked for by the name of a class or of a type
    for own, stock in ((model_name, stock_model.__name__), (PREFIX + family, family)):
        conversions: Any = get_checkpoint_conversion_mapping(stock)  # type: ignore[no-untyped-call]
        if conversions is not None:
            register_checkpoint_conversion_mapping(own, conversions, overwrite=True)
    config_class = type(config_name, (stock_config,), {"__module__": __name__, "model_type": PREFIX + family})

    def init(self: Any, config: Any) -> None:
        of_one_width = copy.copy(config)
        of_one_width.per_layer_config = None
        stock_model.__init__(self, of_one_width)
        for chosen in ("_attn_implementation", "_experts_implementation"):
            if hasattr(of_one_width, chosen):
                setattr(config, chosen, getattr(of_one_width, chosen))
        for module in self.modules():
            if getattr(module, "config", None) is of_one_width:
                module.config = config
        _build_blocks(self, family)
        self.post_init()

    body = {"__module__": __name__, "__init__": init, "config_class": config_class}
    return config_class, type(model_name, (stock_model,), body)


def __getattr__(name: str) -> Any:
    """The class of this name, as `auto_map` asks for it."""
    for family in FAMILIES:
        if name in class_names(family):
            return dict(zip(class_names(family), classes(family), strict=True))[name]
    raise AttributeError(f"module {__name__} has no attribute {name}")


def register(model_type: str) -> None:
    """Lets `AutoConfig` and `AutoModelForCausalLM` know a type of per-layer models, as `per_layer_llama`."""
    family = model_type.removeprefix(PREFIX)
    if not model_type.startswith(PREFIX) or family not in FAMILIES or model_type in CONFIG_MAPPING:
        return
    config_class, model_class = classes(family)
    AutoConfig.register(model_type, config_class)
    AutoModelForCausalLM.register(config_class, model_class)
    config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModelForCausalLM")
