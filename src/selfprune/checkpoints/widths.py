"""How wide the blocks of a checkpoint are, and who can load them, by its configuration alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEYS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


@dataclass(frozen=True)
class Width:
    """Of one block.

    Attributes:
        block: its number.
        n_heads: attention heads; 0 where the attention is gone.
        n_kv_heads: heads of keys and values.
        n_channels: of the FFN; 0 where it is gone.
    """

    block: int
    n_heads: int
    n_kv_heads: int
    n_channels: int


def is_per_layer(config: Mapping[str, Any]) -> bool:
    """Whether the blocks were cut to different widths, so that the model is built by the code beside its checkpoint."""
    return isinstance(config.get("per_layer_config"), dict)


def block_widths(config: Mapping[str, Any]) -> list[Width]:
    """The width of each block; none where a config.json does not name them in the usual way.

    Args:
        config: the content of config.json.
    """
    own = config.get("per_layer_config")
    blocks = {int(index): values for index, values in own.items()} if isinstance(own, dict) else {}
    found = []
    for index in range(_number(config, "num_hidden_layers") or 0):
        block = {**config, **blocks.get(index, {})}
        heads, kv_heads, channels = (_number(block, key) for key in KEYS)
        if heads is None or channels is None:
            return []
        gone = block.get("skip", ())
        attention = (0, 0) if "attention" in gone else (heads, heads if kv_heads is None else kv_heads)
        found.append(Width(index, *attention, 0 if "mlp" in gone else channels))
    return found


def _number(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) else None
