"""Tokens per second of a dense Llama, of the same one with heads and channels cut, and of a dense one built as small.

    python benchmarks/structured_speed.py
    python benchmarks/structured_speed.py --width 4096 --n-blocks 32 --device cuda --dtype bfloat16

The cut model loses other heads and channels in every block, by random widths around the sparsity, as a search leaves them; it is
of the class that any winner is loaded as. The small one has the same number of parameters (to a percent) in one width everywhere.
All three read prompts and write tokens in turns, in one process; medians of the repeats and ratios. On a GPU the energy that a
counter tells (NVML) is divided by the tokens; of a processor it is read where the kernel shows it (RAPL), and else unknown.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_llama import random_llama
from rich.console import Console
from rich.table import Table
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from selfprune.exports.cutting import cut_config
from selfprune.models.loading import LoadedModel
from selfprune.models.per_layer import register
from selfprune.models.structures import list_structures
from selfprune.models.units import n_parameters
from selfprune.timing.machine import machine_name
from selfprune.timing.workload import Mode, Timed, Workload

RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


def widths(loaded: LoadedModel, sparsity: float, multiple: int, seed: int) -> dict[Any, int]:
    """How much every structure keeps: other numbers in every block, the share in all as it should be."""
    rng, structures = random.Random(seed), list_structures(loaded.model)
    wished = {s: 1 - sparsity + rng.uniform(-0.25, 0.25) * min(1, 2 * sparsity) for s in structures}
    kept = {}
    for structure, share in wished.items():
        step = multiple if structure.unit.item.name == "CHANNEL" else 1
        kept[structure] = min(structure.unit.n_items, max(step, round(share * structure.unit.n_items / step) * step))
    return kept


def cut_model(loaded: LoadedModel, kept: dict[Any, int], dtype: torch.dtype, device: torch.device) -> Any:
    """A model of random weights with these widths, of the class that a winner is loaded as."""
    changed = cut_config(loaded.model.config, kept)
    register(changed["model_type"])
    config_class = CONFIG_MAPPING[changed["model_type"]]
    values = {**loaded.model.config.to_dict(), **changed}
    values = {key: value for key, value in values.items() if key not in ("model_type", "auto_map")}
    with device:
        return AutoModelForCausalLM.from_config(config_class(**values), dtype=dtype).eval().requires_grad_(False)


def small_model(loaded: LoadedModel, n_wanted: int, dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama of one width everywhere, with the number of parameters that is nearest."""
    config = loaded.model.config
    best: tuple[float, dict[str, int]] | None = None
    heads, d = config.num_attention_heads, config.hidden_size
    for n_heads in range(1, heads + 1):
        fixed = 2 * config.vocab_size * d + d + config.num_hidden_layers * (2 * d + 4 * d * n_heads * config.head_dim)
        channels = round((n_wanted - fixed) / (3 * d * config.num_hidden_layers) / 8) * 8
        share = channels / config.intermediate_size
        if 0 < channels <= config.intermediate_size and (best is None or abs(share - n_heads / heads) < best[0]):
            best = abs(share - n_heads / heads), {"num_attention_heads": n_heads, "intermediate_size": channels}
    assert best
    changed = {**config.to_dict(), **best[1], "num_key_value_heads": best[1]["num_attention_heads"], "head_dim": config.head_dim}
    # the family wants heads that divide its width, but runs without
    own = LlamaConfig(**{**changed, "num_attention_heads": heads, "num_key_value_heads": heads})
    own.num_attention_heads = own.num_key_value_heads = best[1]["num_attention_heads"]
    with device:
        return LlamaForCausalLM(own).to(dtype).eval().requires_grad_(False)


def energy_reader(device: torch.device) -> Callable[[], float] | None:
    """Joules so far, where something here tells them."""
    if device.type == "cuda":
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except Exception:  # without the library, or a card without a counter
            return None
        return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    try:
        RAPL.read_text()
    except OSError:
        return None
    return lambda: float(RAPL.read_text()) / 1e6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--n-blocks", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--multiple", type=int, default=64)
    parser.add_argument("--n-repeats", type=int, default=9)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.2, 0.35, 0.5])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    loaded = random_llama(options.width, options.n_blocks, options.vocab_size, dtype, device)
    joules, console = energy_reader(device), Console(width=110)
    table = Table(title=f"Tokens per second, {machine_name(device)}, {torch.get_num_threads()} threads, {dtype}")
    for name in ("sparsity", "", "M parameters", "dense", "cut", "small", "cut/dense", "cut/small", "J/token"):
        table.add_column(name, justify="right")
    for sparsity in options.sparsities:
        cut = cut_model(loaded, widths(loaded, sparsity, options.multiple, 0), dtype, device)
        small = small_model(loaded, n_parameters(cut), dtype, device)
        for mode in (Mode.PREFILL, Mode.DECODE):
            workload = Workload(mode, options.batch_size, options.context)
            timed = [Timed(model, workload) for model in (loaded.model, cut, small)]
            spent = [0.0] * len(timed)
            for repeat in range(-1, options.n_repeats):
                for i, one in enumerate(timed):
                    before = joules() if joules else 0.0
                    one.repeat(is_counted=repeat >= 0)
                    spent[i] += joules() - before if joules and repeat >= 0 else 0.0
            rates = [workload.n_tokens / one.seconds() for one in timed]
            # while a token is written, its prompt was read in the same repeat, and the counter cannot tell them apart
            knows = joules is not None and mode is Mode.PREFILL
            energy = " ".join(f"{j / options.n_repeats / workload.n_tokens:.4g}" for j in spent) if knows else "unknown"
            sizes = f"{n_parameters(cut) / 1e6:.1f}, {n_parameters(small) / 1e6:.1f}"
            ratios = (f"{rates[1] / rates[0]:.2f}", f"{rates[1] / rates[2]:.2f}")
            table.add_row(f"{sparsity:.0%}", mode.value, sizes, *(f"{rate:,.1f}" for rate in rates), *ratios, energy)
    console.print(table)


if __name__ == "__main__":
    main()
