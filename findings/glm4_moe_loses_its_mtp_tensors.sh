#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0.
# Expected: from_pretrained followed by save_pretrained gives back a checkpoint that its own config.json describes.
# Happens: GLM-4-MoE's modelling code has no multi-token-prediction block. A checkpoint with `num_nextn_predict_layers: 1` loads (its tensors
#   are told as UNEXPECTED), and the saved copy lacks them all, while its config.json still promises the block.
# Seen: a checkpoint with 2 blocks and one prediction block: 24 of 59 tensors gone, num_nextn_predict_layers still 1.
# Means: a serving engine that believes the config looks for tensors that are not there. selfprune carries every tensor of the source over.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/env/bin/python" - <<'PY'
import json

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Glm4MoeConfig

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = Glm4MoeConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1, n_group=1, topk_group=1,
    num_nextn_predict_layers=1,
)
AutoModelForCausalLM.from_config(config).save_pretrained("source")
tensors = load_file("source/model.safetensors")
# the layout of the published checkpoints: the prediction block follows the last decoder block, with a projection of its own
block = {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in tensors.items() if "layers.1." in name}
block["model.layers.2.eh_proj.weight"] = torch.randn(32, 64)
save_file(tensors | block, "source/model.safetensors", {"format": "pt"})

AutoModelForCausalLM.from_pretrained("source").save_pretrained("copy")
kept = load_file("copy/model.safetensors").keys()
lost = (tensors | block).keys() - kept
promised = json.load(open("copy/config.json"))["num_nextn_predict_layers"]
print(f"{len(lost)} of {len(tensors) + len(block)} tensors lost; config.json still says num_nextn_predict_layers={promised}")
assert lost == block.keys() and promised == 1
PY
