#!/usr/bin/env bash
# torch 2.13.0 (torch.nn.utils.prune), transformers 5.23.0.
# Expected: a Hugging Face model pruned with torch's own pruning is saved and loaded again like any model, or saving refuses.
# Happens: torch.nn.utils.prune replaces each `weight` by `weight_orig` and `weight_mask`. save_pretrained writes these without a word; from_pretrained finds
#   no `weight`, initialises it at random, ignores the two others, and returns a model: dense, and random in every pruned layer.
# Seen: Llama, 2 blocks, 50% by l1_unstructured: 14 weights missing, 28 tensors unexpected, 0% zeros after the reload.
# Means: `prune.remove` on every module before saving, or zeros written into the weights themselves, as selfprune does.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/env/bin/python" - <<'PY'
import torch
import transformers
from torch.nn.utils import prune
from transformers import AutoModelForCausalLM, LlamaConfig

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
model = AutoModelForCausalLM.from_config(config).eval()
pruned = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
for name in pruned:
    prune.l1_unstructured(model.get_submodule(name), "weight", 0.5)
zeros = [(model.get_submodule(name).weight == 0).float().mean().item() for name in pruned]
model.save_pretrained("saved")
loaded, info = AutoModelForCausalLM.from_pretrained("saved", output_loading_info=True)
kept = [(loaded.get_submodule(name).weight == 0).float().mean().item() for name in pruned]
print(f"before: {min(zeros):.0%} zeros in {len(pruned)} layers; missing {len(info['missing_keys'])}, unexpected {len(info['unexpected_keys'])}")
print(f"after the reload: {max(kept):.0%} zeros")
assert min(zeros) == max(zeros) == 0.5 and max(kept) == 0.0
assert len(info["missing_keys"]) == len(pruned) == 14 and len(info["unexpected_keys"]) == 28
PY
