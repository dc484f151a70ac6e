#!/usr/bin/env bash
# accelerate 1.15.0, transformers 5.23.0, torch 2.13.0.
# Expected: inside a forward pass an offloaded module has its weight, so that a torch hook on it can read or mask the weight.
# Happens: accelerate replaces `forward`, and torch's hooks run around that: before it loads the weight and after it drops it. In both hooks the
#   weight is on `meta`, where in-place operations do nothing and raise nothing.
# Seen: zeroing every down_proj in a forward pre-hook changes the logits of a plain model by 4e-2, of an offloaded one (main memory or disk) by
#   exactly 0, with no error or warning; the forward hook, too, sees the device `meta`.
# Means: a pruner that works through hooks on an offloaded model ends without an error and without a pruned weight. selfprune asks for the weights
#   of a block explicitly.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet accelerate==1.15.0 torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/env/bin/python" - <<'PY'
import torch
from accelerate import cpu_offload, disk_offload
from transformers import AutoModelForCausalLM, LlamaConfig

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
tokens = torch.arange(16)[None]
offloads = {
    "plain": lambda model: None,
    "in main memory": lambda model: cpu_offload(model, torch.device("cpu")),
    "on disk": lambda model: disk_offload(model, "offload", torch.device("cpu")),
}
for name, offload in offloads.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    offload(model)
    devices = set()

    def zero(module, inputs):
        devices.add(module.weight.device.type)
        module.weight.data.zero_()

    def look(module, inputs, output):
        devices.add(module.weight.device.type)

    with torch.no_grad():
        dense = model(tokens).logits
        for part, module in model.named_modules():
            if part.endswith("down_proj"):
                module.register_forward_pre_hook(zero)
                module.register_forward_hook(look)
        change = (model(tokens).logits - dense).abs().max().item()
    print(f"{name}: hooks see weights on {sorted(devices)}; the logits change by {change:.1e}")
    assert devices == ({"cpu"} if name == "plain" else {"meta"}), devices
    assert (change > 1e-3) == (name == "plain") and (name == "plain" or change == 0.0), change
PY
