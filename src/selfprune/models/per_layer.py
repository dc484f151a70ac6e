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
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

PREFIX = "per_layer_"
FAMILIES = ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
SUBLAYERS = {"attention": "self_attn", "mlp": "mlp"}
"""What `skip` names -> the module of a block."""


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


def _left_of(reader: Any) -> nn.Module | None:
    return None if reader.bias is None else Constant(reader.bias)


class NoAttention(nn.Module):
    """Stands where an attention was: adds nothing but a bias, and tells the cache how many tokens it has seen.

    Args:
        attention: what was there.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.layer_idx: Any = attention.layer_idx
        self.head_dim: Any = attention.head_dim
        self.o_proj = _left_of(attention.o_proj)

    def forward(self, hidden_states: Tensor, past_key_values: Any = None, **_: Any) -> tuple[Tensor, None]:
        """The bias, or zeros, in the shape of the hidden states [N, T, D]."""
        if past_key_values is not None:
            n, t = hidden_states.shape[:2]
            nothing = hidden_states.new_zeros(n, 1, t, self.head_dim)
            past_key_values.update(nothing, nothing, self.layer_idx)
        return (torch.zeros_like(hidden_states) if self.o_proj is None else self.o_proj(hidden_states)), None


class NoFFN(nn.Module):
    """Stands where an FFN was: adds nothing but a bias.

    Args:
        ffn: what was there.
    """

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.down_proj = _left_of(ffn.down_proj)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The bias, or zeros, in the shape of the hidden states [N, T, D]."""
        return torch.zeros_like(hidden_states) if self.down_proj is None else self.down_proj(hidden_states)


def class_names(family: str) -> tuple[str, str]:
    """What the configuration and the model of a family are called here."""
    stem = "PerLayer" + "".join(part.capitalize() for part in family.split("_"))
    return f"{stem}Config", f"{stem}ForCausalLM"


def _build_blocks(model: Any) -> None:
    """Replaces the blocks by ones that are as wide as the configuration says of each."""
    blocks = model.model.layers
    for index, config in enumerate(model.config.per_layer_config):
        blocks[index] = type(blocks[index])(config, index)
        for path in getattr(config, "biased", ()):
            matrix = blocks[index].get_submodule(path)
            matrix.bias = nn.Parameter(torch.zeros(matrix.out_features, dtype=matrix.weight.dtype))
        for name in getattr(config, "skip", ()):
            gone = getattr(blocks[index], SUBLAYERS[name])
            setattr(blocks[index], SUBLAYERS[name], NoAttention(gone) if name == "attention" else NoFFN(gone))


@cache
def classes(family: str) -> tuple[Any, Any]:
    """The classes of a family, made when one of them is asked for."""
    stock_config: Any = CONFIG_MAPPING[family]
    stock_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[stock_config]
    config_name, model_name = class_names(family)
    config_class = type(config_name, (stock_config,), {"__module__": __name__, "model_type": PREFIX + family})

    def init(self: Any, config: Any) -> None:
        of_one_width = copy.copy(config)
        of_one_width.per_layer_config = None
        stock_model.__init__(self, of_one_width)
        config._attn_implementation = of_one_width._attn_implementation
        for module in self.modules():
            if getattr(module, "config", None) is of_one_width:
                module.config = config
        _build_blocks(self)
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
