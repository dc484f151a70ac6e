"""Prunes a tiny random model of every causal architecture that the installed transformers offers, and tells what became of it.

    python -m experiments.families.walk [NAME ...] [--output FOLDER]

Each goes through `python -m selfprune.prune` as a user's checkpoint would (Wanda, half of the weights of the linear layers in its
blocks, and of its experts), is loaded again by transformers alone, and its zeros are counted. `table.md` has one line for each:

- pruned: how many units, and the sparsity counted in the reloaded checkpoint; `cut` where whole heads and channels can go, too;
- refused: the paragraph that a user is told;
- failed: what went wrong without such a paragraph, which is a mistake of ours;
- not made: why no tiny model could be made of its configuration here.

A model that is not a decoder of text alone, such as one that needs an image or an encoder's output, is made as a decoder, as
`AutoModelForCausalLM` makes it.
"""

import argparse
import contextlib
import inspect
import io
import multiprocessing
import resource
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from selfprune.embedded.corpus import write_corpus
from selfprune.models.families import FAMILIES
from selfprune.models.units import list_units, stored_weight
from selfprune.prune import main as prune

N_TOKENS = 300
SECONDS, MEMORY = 120, 8 * 10**9
"""What one architecture may take."""
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "model_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads", "num_query_groups", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "attention_head_dim", "kv_channels", "d_kv"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "n_inner"), 96),
    **dict.fromkeys(("intermediate_size_mlp", "dff", "d_ff", "shared_intermediate_size", "mlp_hidden_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "ffn_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token"), 2),
    **dict.fromkeys(
        (
            "n_group",
            "n_groups",
            "mamba_n_groups",
            "topk_group",
            "n_shared_experts",
            "num_shared_experts",
            "first_k_dense_replace",
        ),
        1,
    ),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "index_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 512),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "ssm_state_size", "mamba_head_dim"), 16),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), N_TOKENS),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    "hidden_size_per_layer_input": 8,
    "word_embed_proj_dim": 64,
    "num_kv_shared_layers": 0,
    "sliding_window": 32,
    "attention_window": 32,
    "index_n_heads": 2,
    "index_topk": 8,
    "mamba_expand": 2,
    "mamba_d_head": 32,
    "lru_width": 64,
    "is_decoder": True,
}
"""Name in a configuration -> value of a tiny model."""
OF_ONE: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in ("axk2", "deepseek_v32", "glm_moe_dsa", "longcat_flash", "dots3_note_text")},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mamba2": {"head_dim": 32, "num_heads": 4, "state_size": 16, "n_groups": 1},
    "moshi": {"audio_vocab_size": N_TOKENS},
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 32], "attention_head_size": 16},
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""`model_type` -> what its configuration wants otherwise."""


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures by `model_type`; all without")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder of table.md")
    arguments = parser.parse_args()
    names = arguments.names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if unknown := [name for name in names if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]:
        parser.error(f"transformers {transformers.__version__} has no causal architecture {unknown[0]!r}")
    rows = [(name, *apart(name)) for name in track(names, description="walking")]
    text = table(rows)
    if arguments.names:
        print(text)
    else:
        (arguments.output / "table.md").write_text(text)
    print(dict(Counter(outcome for _, outcome, _ in rows)))


def table(rows: list[tuple[str, str, str]]) -> str:
    """The outcomes as Markdown."""
    counts = Counter(outcome for _, outcome, _ in rows)
    lines = [f"# The causal architectures of transformers {transformers.__version__}", ""]
    lines += [", ".join(f"{n} {outcome}" for outcome, n in counts.most_common()) + ".", ""]
    lines += ["| architecture | outcome | |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {outcome} | {told} |" for name, outcome, told in rows)]) + "\n"


def apart(name: str) -> tuple[str, str]:
    """What became of an architecture, in a process of its own, which may crash or hang."""
    queue: multiprocessing.SimpleQueue[tuple[str, str]] = multiprocessing.SimpleQueue()
    child = multiprocessing.get_context("fork").Process(target=lambda: queue.put(walked(name)))
    child.start()
    child.join(SECONDS)
    if child.is_alive():
        child.kill()
        return "failed", f"it took more than {SECONDS} s"
    return queue.get() if not queue.empty() else ("failed", f"the process ended with code {child.exitcode}")


def walked(name: str) -> tuple[str, str]:
    """The outcome, and what is told of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        folder, output = Path(scratch, "model"), Path(scratch, "pruned")
        try:
            model = tiny(name)
        except Exception as error:
            return "not made", one_line(f"{type(error).__name__}: {error}")
        try:
            model.save_pretrained(folder)
            tokenizer().save_pretrained(folder)
        except Exception as error:
            return "not made", one_line(f"it cannot be saved: {type(error).__name__}: {error}")
        text = folder / "text.txt"
        text.write_text(write_corpus(0, 20_000))
        said = io.StringIO()
        options = ["model=local", f"model.path={folder}", "data=files", f"data.calibration={text}", "budget.sparsity=0.5"]
        sizes = ["data.n_calibration=8", "data.n_tokens_per_window=32", f"output={output}"]
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = prune([*options, *sizes])
        except BaseException as error:
            return "failed", one_line(f"{type(error).__name__}: {error} {traceback.format_exc()[-300:]}")
        if code == 2:
            return "refused", one_line(paragraph(said.getvalue()).replace(str(folder), "MODEL"))
        if code:
            return "failed", one_line(f"exit code {code}: {said.getvalue()[-300:]}")
        return counted(name, output)


def counted(name: str, output: Path) -> tuple[str, str]:
    """What transformers finds in the pruned checkpoint."""
    try:
        again, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    except Exception as error:
        return "failed", one_line(f"the pruned checkpoint cannot be loaded: {type(error).__name__}: {error}")
    if info["missing_keys"] or info["unexpected_keys"]:
        told = f"the pruned checkpoint lacks {info['missing_keys']}, and has {info['unexpected_keys']} besides"
        return "failed", one_line(told)
    units = list_units(again)
    weights = [stored_weight(again, unit) for unit in units]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    cut = ", cut" if again.config.get_text_config().model_type in FAMILIES else ""
    if not 0.45 < zeros < 0.55:
        return "failed", f"{zeros:.1%} zeros where 50% were asked for"
    return "pruned", f"{len(units)} units, {zeros:.1%} zeros{cut}"


def tiny(name: str) -> Any:
    """A random model of a small configuration."""
    torch.manual_seed(0)
    config = small(type(AutoConfig.for_model(name)))
    with torch.device("meta"):
        n_parameters = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if n_parameters > 100_000_000:
        raise ValueError(f"its smallest configuration has {n_parameters:,} parameters")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.data.normal_(std=0.02)
    return model


def small(kind: type) -> Any:
    """A configuration whose sizes are those of `SIZES`, its parts' too, as far as it has them by these names."""
    names = set(inspect.signature(kind).parameters) | set(getattr(kind, "__annotations__", {}))
    given = {key: value for key, value in SIZES.items() if key in names}
    given |= OF_ONE.get(getattr(kind, "model_type", ""), {})
    given |= {part: small(sub).to_dict() for part, sub in getattr(kind, "sub_configs", {}).items() if sub is not AutoConfig}
    return kind(**given)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the embedded world."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=N_TOKENS, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([write_corpus(0, 20_000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>")


def paragraph(said: str) -> str:
    """The last paragraph of what a command said, without progress."""
    return said.rsplit("selfprune: ", 1)[-1]


def one_line(text: str) -> str:
    """A cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")[:400]


if __name__ == "__main__":
    sys.exit(main())
