#!/usr/bin/env bash
# lm-eval 0.4.13, transformers 5.23.0, torch 2.13.0.
# Expected: the log-likelihood of an answer after a context does not depend on which other answers are asked for.
# Happens: HFLM runs requests together whose context and answer share all tokens but the last one, and keeps the logits of the longest answer. Of a shorter one it reads
#   the first positions of these instead of the last ones, so the probability of its token after too short a context. `is_greedy` is right.
# Seen: "w1 w2" + " w3 w4" and "w1 w2 w3" + " w5" together: the second gets -6.3116, which is log p(w5 | w1 w2); alone it gets
#   -5.8539, which is log p(w5 | w1 w2 w3).
# Means: a task whose contexts begin others' answers (partial contexts, growing lists) is scored wrong by the same commands that score it
#   right one document at a time. selfprune reads the positions itself (evaluators/scored_tokens.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet lm-eval==0.4.13 torch==2.13.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0
cd "$work"
export HF_HOME=$work/hf HF_HUB_OFFLINE=1
"$work/env/bin/python" - 2>"$work/log" <<'PY' || { tail -20 "$work/log"; exit 1; }
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

words = [f"w{i}" for i in range(500)]
inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="w0", pad_token="w0")
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(
    LlamaConfig(vocab_size=501, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
).eval()
lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)


def ask(*pairs):
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return [round(value, 4) for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def log_p(context, answer):
    ids = torch.tensor([tokenizer(context)["input_ids"]])
    with torch.no_grad():
        return float(model(ids).logits[0, -1].log_softmax(-1)[tokenizer(answer)["input_ids"][0]])


longer, shorter = ("w1 w2", " w3 w4"), ("w1 w2 w3", " w5")
together, alone = ask(longer, shorter), [*ask(longer), *ask(shorter)]
print(f"together {together}, each alone {alone}")
print(f"log p(w5 | w1 w2 w3) = {log_p('w1 w2 w3', 'w5'):.4f}, log p(w5 | w1 w2) = {log_p('w1 w2', 'w5'):.4f}")
assert together[0] == alone[0]
assert abs(alone[1] - log_p("w1 w2 w3", "w5")) < 1e-3 < abs(together[1] - alone[1])
assert abs(together[1] - log_p("w1 w2", "w5")) < 1e-3
PY
