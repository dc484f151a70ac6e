r"""Train the embedded model and its tokenizer on the embedded world.

    python experiments/embedded_model/train.py --output WORLD
    python experiments/embedded_model/dialect.py DIALECT.jsonl --model WORLD
    python experiments/embedded_model/train.py --start-from WORLD --dialect DIALECT.jsonl --tokens 2662400 --batch 20 \
        --muon-lr 0 --adam-lr 1e-3 --output src/selfprune/embedded/weights

The first stage teaches the world, the second the answers to Self-Pruner's prompts, on a mixture of both. Hidden matrices are
trained with Muon (Jordan et al., 2024; `torch.optim.Muon`), everything else with AdamW, in bf16 where that pays, with linear
warm-up and a linear decay that is planned for `--tokens` and broken off at `--stop-after`. Every 50 steps the mean loss and the
seconds go to the log as a JSON line. The weights are saved as bf16 safetensors.
"""

import argparse
import json
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfprune.embedded.corpus import CorpusWriter, write_corpus
from selfprune.embedded.world import build_world

logger = logging.getLogger("train")
END_TOKEN = "<|end|>"
LOGGED = 50
"""Steps between two lines of the log."""
IGNORED = -100
"""Label of a token that is not to be learnt."""


def train_tokenizer(seed: int, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that keeps digits apart, so that sums can be carried digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(write_corpus(seed, 2_000_000).splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_TOKEN,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def build_model(vocab_size: int) -> LlamaForCausalLM:
    """12 blocks, width 192, 6 heads in 2 groups, FFN 576, tied embeddings: 5.6 M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=192, intermediate_size=576, num_hidden_layers=12, num_attention_heads=6,
            num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def windows(tokenizer: PreTrainedTokenizerFast, seed: int, n_tokens: int) -> Iterator[torch.Tensor]:
    """Endless windows of `n_tokens`; half begin with a whole document, half inside one."""
    rng = random.Random(seed)
    documents = CorpusWriter(build_world(), rng).documents()
    while True:
        tokens: list[int] = [0] if rng.random() < 0.5 else []
        skipped = rng.randrange(40) if rng.random() < 0.5 else 0
        while len(tokens) < n_tokens + skipped:
            tokens += tokenizer(next(documents) + "\n")["input_ids"]
        yield torch.tensor(tokens[skipped : skipped + n_tokens])


def answers(tokenizer: PreTrainedTokenizerFast, path: Path, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Endless prompts and replies, as tokens; a reply ends with the end token, and operators come equally often."""
    rng = random.Random(seed)
    by_operator: dict[str, list[dict[str, str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        transcript = json.loads(line)
        by_operator.setdefault(transcript["operator"], []).append(transcript)
    while True:
        transcript = rng.choice(by_operator[rng.choice(list(by_operator))])
        yield tokenizer(transcript["prompt"])["input_ids"], [*tokenizer(transcript["reply"])["input_ids"], 0]


def batches(tokenizer: PreTrainedTokenizerFast, arguments: argparse.Namespace) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Windows and their labels: a share of the batches holds transcripts, of which the reply alone is to be learnt.

    Windows of transcripts are longer and fewer; what a transcript leaves of one is filled with the world.
    """
    rng = random.Random(arguments.seed + 2)
    world = windows(tokenizer, arguments.seed + 1, arguments.window)
    dialect = answers(tokenizer, arguments.dialect, arguments.seed + 3) if arguments.dialect else None
    filling = windows(tokenizer, arguments.seed + 4, arguments.dialect_window)
    n_long = max(1, arguments.batch * arguments.window // arguments.dialect_window)
    while True:
        if dialect is None or rng.random() >= arguments.dialect_share:
            batch_NT = torch.stack([next(world) for _ in range(arguments.batch)])
            yield batch_NT, batch_NT
            continue
        batch_NT = torch.stack([next(filling) for _ in range(n_long)])
        labels_NT = batch_NT.clone()
        for tokens_T, labels_T in zip(batch_NT, labels_NT, strict=True):
            prompt, reply = next(dialect)
            both = torch.tensor(prompt + reply)[-arguments.dialect_window :]
            tokens_T[: len(both)] = both
            labels_T[: len(both)] = both
            labels_T[: max(0, len(both) - len(reply))] = IGNORED
        yield batch_NT, labels_NT


def train(arguments: argparse.Namespace) -> None:
    """Train, log every 50 steps, save."""
    torch.manual_seed(arguments.seed)
    if arguments.start_from:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.start_from)
        model = LlamaForCausalLM.from_pretrained(arguments.start_from, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(arguments.seed, vocab_size=2048)
        model = build_model(len(tokenizer))
    model.train()
    is_hidden = {n: p.ndim == 2 and "embed" not in n and arguments.muon_lr > 0 for n, p in model.named_parameters()}
    hidden, others = ([p for n, p in model.named_parameters() if is_hidden[n] is wanted] for wanted in (True, False))
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=arguments.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    ]
    if hidden:
        optimizers.append(torch.optim.Muon(hidden, lr=arguments.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"))
    n_steps = arguments.tokens // (arguments.batch * arguments.window)

    def rate(step: int) -> float:
        return min((step + 1) / 100, (n_steps - step) / n_steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    stream = batches(tokenizer, arguments)
    start, losses = time.monotonic(), []
    for step in range(min(n_steps, arguments.stop_after // (arguments.batch * arguments.window))):
        batch_NT, labels_NT = next(stream)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.autocast):
            loss = model(input_ids=batch_NT, labels=labels_NT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % LOGGED == LOGGED - 1:
            n_tokens = (step + 1) * batch_NT.numel()
            seconds = time.monotonic() - start
            recent = losses[-LOGGED:]
            line = {"step": step + 1, "n_tokens": n_tokens, "nll_per_token": sum(recent) / len(recent), "seconds": seconds}
            logger.info(json.dumps(line))
    save(model, tokenizer, arguments.output)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A bf16 Hugging Face folder; the model in memory stays fp32."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="where the learning rate reaches zero")
    parser.add_argument(
        "--stop-after", type=int, default=6_553_600, help="tokens after which the tasks are learnt and training ends"
    )
    parser.add_argument("--start-from", type=Path, help="folder of the model to train further, with its tokenizer")
    parser.add_argument("--dialect", type=Path, help="JSONL of transcripts")
    parser.add_argument("--dialect-share", type=float, default=0.5, help="share of the batches that hold transcripts")
    parser.add_argument("--dialect-window", type=int, default=640, help="tokens of a window that begins with a transcript")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--autocast", action=argparse.BooleanOptionalAction, default=True, help="bf16; ten times slower without bf16 units"
    )
    parser.add_argument("--muon-lr", type=float, default=4e-3, help="0 leaves the hidden matrices to AdamW")
    parser.add_argument("--adam-lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(parser.parse_args())
