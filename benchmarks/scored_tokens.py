"""Scores one batch of lm-eval requests on a random model with a large vocabulary, in lm-eval's way or in ours, for peak memory.

    python benchmarks/scored_tokens.py --kind plain --n-requests 2
    python benchmarks/scored_tokens.py --kind ours --n-requests 64

Memory is the growth of the process' peak; each kind needs a process of its own.
"""

import argparse
import resource
import time

import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfprune.evaluators.scored_tokens import ScoredTokensLM

N_SCORED = 10
KINDS = {"plain": HFLM, "ours": ScoredTokensLM}


def main() -> None:
    """Measures one kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="ours")
    parser.add_argument("--n-requests", type=int, default=2)
    parser.add_argument("--n-tokens", type=int, default=465)
    parser.add_argument("--vocabulary", type=int, default=262_144)
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=options.vocabulary, max_position_embeddings=2048, **sizes)).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")), eos_token="b")
    lm = KINDS[options.kind](model, tokenizer=tokenizer, batch_size=options.n_requests, softmax_dtype="float32")
    tokens = torch.randint(options.vocabulary, (options.n_requests, options.n_tokens)).tolist()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = lm._loglikelihood_tokens([(None, row[:-N_SCORED], row[-N_SCORED:]) for row in tokens], disable_tqdm=True)
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"{options.kind}: {options.n_requests} requests of {options.n_tokens} tokens, {N_SCORED} scored, vocabulary "
        f"{options.vocabulary:,}: {peak / 1024:,.0f} MB above the model, {seconds:.1f} s, log-likelihood {found[0][0]:.6f}"
    )


if __name__ == "__main__":
    main()
