#!/usr/bin/env bash
# transformers 5.23.0, gguf 0.19.0, torch 2.13.0, on CPU.
# Expected: a GGUF file whose tensors are all float32 loads as a model of plain float32 layers, which is saved as any other.
# Happens: `from_pretrained(gguf_file=...)` gives plain `nn.Linear` layers in float32, and yet marks the model as quantised; `save_pretrained`
#   then refuses. `GgufConfig(dequantize=True)` gives the same layers and weights, and is saved.
# Seen: ValueError "The model is quantized with gguf and is not serializable" for a file of float32 as for one of Q8_0, whose layers are plain,
#   too, since there is no kernel for packed ones on this device; weights with and without the option are equal bit by bit.
# Means: what a model from a GGUF file is cannot be told from its layers, and hours of pruning end in a refusal. selfprune asks for
#   plain weights before anything else, and writes them as a checkpoint first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet accelerate==1.15.0 gguf==0.19.0 torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/env/bin/python" - <<'PY'
import gguf
import torch
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
}
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(
    LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
    )
)


def write(kind):
    writer = gguf.GGUFWriter(f"{kind}.gguf", "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(64)
    for name, weight in model.state_dict().items():
        parts = name.removesuffix(".weight").removeprefix("model.").split(".")
        stored = f"blk.{parts[1]}.{NAMES['.'.join(parts[2:])]}" if parts[0] == "layers" else NAMES[parts[0]]
        own = gguf.GGMLQuantizationType[kind if weight.ndim > 1 else "F32"]
        writer.add_tensor(f"{stored}.weight", gguf.quants.quantize(weight.numpy(), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


for kind in ("F32", "Q8_0"):
    write(kind)
    found, plain = (
        AutoModelForCausalLM.from_pretrained(".", gguf_file=f"{kind}.gguf", dtype=torch.float32, **options)
        for options in ({}, {"quantization_config": GgufConfig(dequantize=True)})
    )
    layers = [each.model.layers[0].mlp.up_proj for each in (found, plain)]
    assert all(type(layer) is torch.nn.Linear and layer.weight.dtype is torch.float32 for layer in layers), layers
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), plain.parameters(), strict=True))
    plain.save_pretrained(f"{kind}_plain")
    try:
        found.save_pretrained(f"{kind}_found")
    except ValueError as error:
        print(f"{kind}: plain float32 layers, and: {str(error).split(' - ')[0]}")
        assert "quantized with gguf and is not serializable" in str(error)
    else:
        raise SystemExit(f"{kind}: it was saved, so this has changed")
PY
