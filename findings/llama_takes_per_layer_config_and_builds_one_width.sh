#!/usr/bin/env bash
# transformers 5.23.0 (per_layer_config, new in 5.15), torch 2.13.0.
# Expected: a Llama whose configuration gives each layer its own widths, or skips its FFN, is built with them, or the configuration is refused.
# Happens: LlamaConfig takes `per_layer_config`, answers by layer, and keeps it when saved and read again; the model is built with the global
#   widths in every layer, no FFN is skipped, and nothing is said. Only families that read it themselves (Gemma 4, say) follow it.
# Seen: asked for 8 and no channels where the others have 24, all layers have 24, and the model has as many parameters as without.
# Means: a checkpoint cut to different widths needs a modelling file that builds its layers; selfprune writes one beside the weights.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/env/bin/python" - <<'PY'
import transformers
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
widths = dict(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=4
)
own = {0: {"intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}, 1: {"skip": ["mlp"]}}
LlamaConfig(**widths, per_layer_config=own, allow_global_per_layer_attribute_access=True).save_pretrained("saved")
config = AutoConfig.from_pretrained("saved")
told = [(layer.intermediate_size, layer.num_key_value_heads, getattr(layer, "skip", [])) for layer in config.per_layer_config]
model, plain = LlamaForCausalLM(config), LlamaForCausalLM(LlamaConfig(**widths))
built = [(layer.mlp.up_proj.out_features, layer.self_attn.k_proj.out_features // 4) for layer in model.model.layers]
print("the configuration says", told)
print("the model has", built, "and", model.num_parameters(), "parameters; without its own widths", plain.num_parameters())
assert told == [(8, 1, []), (24, 2, ["mlp"]), (24, 2, [])]
assert built == [(24, 2)] * 3 and model.num_parameters() == plain.num_parameters()
PY
