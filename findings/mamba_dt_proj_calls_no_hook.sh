#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0.
# Expected: a forward hook on every nn.Linear sees every input of every linear layer; a layer that no hook saw does nothing.
# Happens: the mixers of Mamba and FalconMamba read `dt_proj.weight` and multiply by it themselves. Its hook never fires, although its
#   weight decides the output. Calibration by hooks gathers nothing for it, without any error.
# Seen: both families, every block: 0 calls of dt_proj; with its weight zeroed the logits change (Mamba 1e-4, FalconMamba 7e-2 at random
#   weights of width 32).
# Means: activation-aware metrics are all zero there, and a stable sort then removes weights by their index. selfprune prunes what
#   calibration never saw by magnitude, and names it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$work/env/bin/python" - <<'PY'
import torch
import transformers
from transformers import AutoModelForCausalLM, FalconMambaConfig, MambaConfig

transformers.logging.set_verbosity_error()
for kind in (MambaConfig, FalconMambaConfig):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)).eval()
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    called = set()
    for name, module in linears.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        before = model(tokens).logits
        silent = sorted(linears.keys() - called)
        for name in silent:
            linears[name].weight.zero_()
        change = (model(tokens).logits - before).abs().max().item()
    print(f"{type(model).__name__}: no hook saw {silent}; zeroing their weights changes the logits by {change:.1e}")
    assert silent == [f"backbone.layers.{block}.mixer.dt_proj" for block in range(2)], silent
    assert change > 1e-6, change
PY
