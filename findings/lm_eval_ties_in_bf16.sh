#!/usr/bin/env bash
# lm-eval 0.4.13, transformers 5.23.0, torch 2.13.0, datasets 5.2.0.
# Expected: the number format of the weights changes the log-likelihoods of a multiple-choice task by a little noise.
# Happens: lm-eval's HFLM takes log_softmax and the sum over tokens in the model's own format. In bf16 a sum near -25 has a step of 0.125 or more, so that answers tie
#   to the last bit, and argmax gives every tie to the choice that stands first. `softmax_dtype` is there, and is not set by default.
# Seen: 400 documents with four choices of four tokens, one random Llama: fp32 no tie for the first place; bf16 ties in 85 documents, and all 1,600
#   log-likelihoods together take 16 values.
# Means: accuracies of bf16 models lean towards the position of the right answer, and two pruned models may differ by ties alone. selfprune
#   takes log_softmax and the sum over tokens in fp32 of the logits that the head gives, in whatever format the model is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet lm-eval==0.4.13 torch==2.13.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0
cd "$work"
export HF_HOME=$work/hf HF_HUB_OFFLINE=1
"$work/env/bin/python" - 2>"$work/log" <<'PY' || { tail -20 "$work/log"; exit 1; }
import json
import random

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

words = [f"w{i}" for i in range(500)]
inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="w0", pad_token="w0")
draw = random.Random(0)
with open("documents.jsonl", "w") as file:
    for _ in range(400):
        choices = [" ".join(draw.choices(words, k=4)) for _ in range(4)]
        file.write(json.dumps({"q": " ".join(draw.choices(words, k=8)), "choices": choices, "gold": draw.randrange(4)}) + "\n")
with open("ties.yaml", "w") as file:
    file.write(
        "task: ties\ndataset_path: json\ndataset_kwargs: {data_files: {test: documents.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{gold}}"\n'
        "metric_list: [{metric: acc}]\n"
    )
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(
    LlamaConfig(vocab_size=501, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
).eval()
ties, values = {}, {}
for dtype in (torch.float32, torch.bfloat16):
    lm = HFLM(pretrained=model.to(dtype), tokenizer=tokenizer, batch_size=16)
    result = lm_eval.simple_evaluate(
        lm, tasks=["ties"], task_manager=TaskManager(include_path="."), log_samples=True, bootstrap_iters=0
    )
    scores = [sorted(reply[0] for reply in document["filtered_resps"]) for document in result["samples"]["ties"]]
    ties[dtype] = sum(one[-1] == one[-2] for one in scores)
    values[dtype] = len({value for one in scores for value in one})
    print(f"{dtype}: {ties[dtype]} of {len(scores)} documents tie for the first place; {values[dtype]} different log-likelihoods")
assert ties[torch.float32] == 0 and values[torch.float32] > 1500
assert ties[torch.bfloat16] > 40 and values[torch.bfloat16] < 40
PY
