"""How wide the blocks of a checkpoint are, and who can load them, by its configuration alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_BLOCKS = 10_000
"""Beyond any model: a config.json that names more is not believed."""
WIDTHS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
NUMBERS_OF_EXPERTS = ("num_local_experts", "num_experts")
"""What configurations call the experts of a block."""
ALSO_CALLED = {
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("ffn_dim", "n_inner"),
    "num_hidden_layers": ("n_layer",),
}
"""What some families call these numbers in a config.json."""


@dataclass(frozen=True)
class Width:
    """Of one block.

    Attributes:
        block: its number.
        n_heads: attention heads; 0 where the attention is gone.
        n_kv_heads: heads of keys and values.
        n_channels: of the FFN; 0 where it is gone.
        n_experts: of the FFN; 0 where it has none.
    """

    block: int
    n_heads: int
    n_kv_heads: int
    n_channels: int
    n_experts: int = 0


def is_per_layer(config: Mapping[str, Any]) -> bool:
    """Whether the blocks were cut to different widths, so that the model is built by the code beside its checkpoint."""
    return isinstance(config.get("per_layer_config"), dict)


def block_widths(config: Mapping[str, Any]) -> list[Width]:
    """The width of each block; none where a config.json does not name them in the usual way.

    Args:
        config: the content of config.json.
    """
    own = config.get("per_layer_config")
    blocks = {int(key): values for key, values in own.items() if key.isdecimal()} if isinstance(own, dict) else {}
    n_blocks = config_number(config, "num_hidden_layers") or 0
    if n_blocks > MAX_BLOCKS or not all(isinstance(values, dict) for values in blocks.values()):
        return []
    found = []
    for index in range(n_blocks):
        block = {**config, **blocks.get(index, {})}
        heads, kv_heads, channels = (config_number(block, key) for key in WIDTHS)
        if heads is None or channels is None:
            return []
        gone = block.get("skip")
        gone = gone if isinstance(gone, list) else []
        attention = (0, 0) if "attention" in gone else (heads, heads if kv_heads is None else kv_heads)
        n_experts = next((n for name in NUMBERS_OF_EXPERTS if isinstance(n := block.get(name), int)), 0)
        found.append(Width(index, *attention, 0 if "mlp" in gone else channels, n_experts))
    return found


def config_number(config: Mapping[str, Any], key: str) -> int | None:
    """A number of a config.json, whatever the family calls it; None where there is none.

    Args:
        config: the content.
        key: what most families call it.
    """
    values = (config.get(name) for name in (key, *ALSO_CALLED.get(key, ())))
    return next((value for value in values if isinstance(value, int)), None)


def own_name(config: Mapping[str, Any], key: str) -> str:
    """What a config.json calls a number.

    Args:
        config: the content.
        key: what most families call it.
    """
    return next((name for name in ALSO_CALLED.get(key, ()) if name in config), key)
