"""Which matrices of a block write and read the attention heads and the FFN channels, for every family that can be cut.

A family is one entry of `FAMILIES`, by the `model_type` of its configuration. Of a sublayer it says in which module it lies,
which matrix reads the items (its input columns), and which write them (their output rows), with what stands in the rows of each:
`q`, `k` and `v` of all heads, or `c` for channels, one after the other; in brackets, one after the other for each head.

Limits: gated and plain FFNs, and attention whose heads are independent of each other. OLMo 2 normalises the queries of all heads
together, so that no head can go alone.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sublayer:
    """One attention or one FFN of a block.

    Attributes:
        path: the module inside the block that holds the matrices, empty for the block itself.
        reader: the matrix in that module whose input columns are the items.
        writers: matrix in that module -> what its output rows are.
        is_whole: whether it can only go as a whole.
    """

    path: str
    reader: str
    writers: dict[str, str]
    is_whole: bool = False

    @property
    def kind(self) -> str:
        """What units of such sublayers are called within a block."""
        return self.path or "ffn"


@dataclass(frozen=True)
class Experts:
    """The experts of a block, whose matrices are stacked (expert, out, in).

    Attributes:
        path: the module inside the block that holds them.
        writers: parameters that lose an entry with each expert: the router's rows, and what the experts read.
        reader: the parameter that writes what the experts put out.
        router: the module that sends tokens to them.
    """

    path: str = "mlp"
    writers: tuple[str, ...] = ("gate.weight", "experts.gate_up_proj")
    reader: str = "experts.down_proj"
    router: str = "gate"


SPLIT = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}
ATTENTION = Sublayer("self_attn", "o_proj", SPLIT)
GATED = Sublayer("mlp", "down_proj", {"gate_proj": "c", "up_proj": "c"})
LLAMA = (ATTENTION, GATED)
FAMILIES: dict[str, tuple[Sublayer, ...]] = {
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "gpt2": (Sublayer("attn", "c_proj", {"c_attn": "qkv"}), Sublayer("mlp", "c_proj", {"c_fc": "c"})),
    "gpt_neox": (
        Sublayer("attention", "dense", {"query_key_value": "[qkv]"}),
        Sublayer("mlp", "dense_4h_to_h", {"dense_h_to_4h": "c"}),
    ),
    "granite": LLAMA,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": (ATTENTION,),
    "olmo2": (Sublayer("self_attn", "o_proj", SPLIT, is_whole=True), GATED),
    "opt": (Sublayer("self_attn", "out_proj", SPLIT), Sublayer("", "fc2", {"fc1": "c"})),
    "phi3": (Sublayer("self_attn", "o_proj", {"qkv_proj": "qkv"}), Sublayer("mlp", "down_proj", {"gate_up_proj": "cc"})),
    "qwen2": LLAMA,
    "qwen2_moe": LLAMA,
    "qwen3": LLAMA,
    "qwen3_moe": LLAMA,
    "smollm3": LLAMA,
}
"""`model_type` -> the sublayers of each block, in their order."""
EXPERTS: dict[str, Experts] = dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), Experts())
"""`model_type` -> the experts of each block that has any."""
