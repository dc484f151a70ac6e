#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0.
# Expected: from_pretrained(dtype="auto") keeps every tensor in the number format in which the checkpoint holds it.
# Happens: "auto" means one format for all of the model. Tensors that a bf16 checkpoint keeps in fp32 on purpose (the state matrix `A_log` and the skip
#   `D` of Mamba) are rounded to bf16 in silence, and save_pretrained writes the rounded ones.
# Seen: Mamba, 2 blocks: after loading and saving, all four fp32 tensors are bf16, off by up to 1e-3.
# Means: a copy of a checkpoint that was "only pruned" differs in tensors that nobody touched. selfprune writes them as the source holds them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/env/bin/python" - <<'PY'
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, dtype="bfloat16")
AutoModelForCausalLM.from_config(config).save_pretrained("source")
source = {
    name: tensor.float() + 1e-3 * torch.rand(tensor.shape) if name.endswith(("A_log", ".D")) else tensor.to(torch.bfloat16)
    for name, tensor in load_file("source/model.safetensors").items()
}
save_file(source, "source/model.safetensors", {"format": "pt"})

AutoModelForCausalLM.from_pretrained("source", dtype="auto").save_pretrained("copy")
copy = load_file("copy/model.safetensors")
wide = [name for name, tensor in source.items() if tensor.dtype is torch.float32]
errors = {name: (copy[name].float() - source[name]).abs().max().item() for name in wide}
for name, error in errors.items():
    print(f"{name}: fp32 in the source, {copy[name].dtype} in the copy, off by {error:.1e}")
assert len(wide) == 4 and all(copy[name].dtype is torch.bfloat16 for name in wide) and max(errors.values()) > 1e-4
PY
