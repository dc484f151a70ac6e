#!/usr/bin/env bash
# llama.cpp as shipped in cyllama 0.2.18 (architecture `deci`, which has a width for each block), written with gguf 0.19.0.
# Expected: a block whose `feed_forward_length` is 0 adds its attention and no FFN, as a block of 32 channels of zeros does.
# Happens: it is loaded without a word, and the attention of the block is computed and dropped as well: what enters the block leaves it.
# Seen: logits equal to those of a model whose block has neither attention nor FFN (head counts of 0), to the last digit, and up to 2.7 away
#   from those with 32 channels of zeros.
# Means: a model pruned by a single FFN runs worse than it is, and nothing says so; selfprune's GGUF files keep channels of zeros there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet gguf==0.19.0 cyllama==0.2.18
cd "$work"
"$work/env/bin/python" - 2> log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import gguf
import numpy as np
from cyllama.llama import llama_cpp

WIDTH, HEADS, CHANNELS, WORDS = 64, 4, 96, 40


def logits(middle):
    """Of a model of three blocks, of which the second has `attention` or not, and some number of channels, all zeros but for None."""
    attention, channels = middle
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(0, 0.2, shape).astype(np.float32)

    writer = gguf.GGUFWriter("model.gguf", "deci")
    heads = [HEADS, HEADS if attention else 0, HEADS]
    for add, value in (
        (writer.add_block_count, 3), (writer.add_context_length, 64), (writer.add_embedding_length, WIDTH),
        (writer.add_feed_forward_length, [CHANNELS, channels, CHANNELS]), (writer.add_head_count, heads),
        (writer.add_head_count_kv, heads), (writer.add_rope_dimension_count, 16), (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, WORDS), (writer.add_tokenizer_model, "no_vocab"),
    ):  # fmt: skip
        add(value)
    tensors = {"token_embd": normal(WORDS, WIDTH), "output_norm": np.ones(WIDTH, np.float32), "output": normal(WORDS, WIDTH)}
    for block in range(3):
        own = {f"attn_{name}": normal(WIDTH, WIDTH) for name in ("q", "k", "v", "output")} | {"attn_norm": np.ones(WIDTH, np.float32)}
        if block != 1 or attention:
            tensors |= {f"blk.{block}.{name}": tensor for name, tensor in own.items()}
        n = CHANNELS if block != 1 else channels
        if n:
            make = normal if block != 1 else lambda *shape: np.zeros(shape, np.float32)
            tensors |= {f"blk.{block}.ffn_norm": np.ones(WIDTH, np.float32), f"blk.{block}.ffn_gate": make(n, WIDTH)}
            tensors |= {f"blk.{block}.ffn_up": make(n, WIDTH), f"blk.{block}.ffn_down": make(WIDTH, n)}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    class Model(llama_cpp.LlamaModel):
        @property
        def n_vocab(self):  # asked for by this version's own `get_logits_ith`, and not there
            return WORDS

    options = llama_cpp.LlamaContextParams()
    options.n_ctx, options.n_threads = 64, 1
    model = Model("model.gguf")
    context, batch = llama_cpp.LlamaContext(model, options), llama_cpp.LlamaBatch(n_tokens=64, embd=0, n_seq_max=1)
    batch.set_batch([5, 9, 1, 7, 30, 2], 0, True)
    context.decode(batch)
    return np.array(context.get_logits_ith(5))


no_ffn, zeros, nothing = (logits(middle) for middle in ((True, 0), (True, 32), (False, 0)))
print(f"a block without FFN is {abs(no_ffn - zeros).max():.3f} away from one of zero channels,", end=" ")
print(f"and {abs(no_ffn - nothing).max():.3f} from one without attention and FFN")
assert abs(no_ffn - zeros).max() > 0.05
assert abs(no_ffn - nothing).max() == 0
PY
