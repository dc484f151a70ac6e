"""Prunes a random Llama from disk and in memory, and compares memory, time and every tensor of the two results.

    python benchmarks/larger_than_memory.py FOLDER --gigabytes 6

FOLDER takes three copies of the model. The prunings run as a user would start them, each in a process of its own.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

GEOMETRY = {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16, "num_key_value_heads": 16}
BYTES = 4


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """Writes a random fp32 Llama shard by shard, with the embedded model's tokenizer."""
    embedded = files("selfprune.embedded") / "weights"
    n_tokens = json.loads((embedded / "config.json").read_text())["vocab_size"]
    n_of_block = 4 * GEOMETRY["hidden_size"] ** 2 + 3 * GEOMETRY["hidden_size"] * GEOMETRY["intermediate_size"]
    n_blocks = max(1, round(gigabytes * 1e9 / BYTES / n_of_block))
    config = LlamaConfig(
        **GEOMETRY,
        num_hidden_layers=n_blocks,
        vocab_size=n_tokens,
        max_position_embeddings=2048,
        dtype="float32",
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    for path in embedded.iterdir():
        if path.name.startswith("tokenizer"):
            (folder / path.name).write_bytes(path.read_bytes())
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in skeleton.named_parameters():
        shard = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(shard, {})[name] = parameter.shape
    generator, weight_map = torch.Generator().manual_seed(0), {}
    for shard, shapes in shards.items():
        tensors = {name: _random(shape, generator) for name, shape in shapes.items()}
        save_file(tensors, folder / f"model-{shard}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"model-{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _random(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02


def prune(model: Path, output: Path, placement: str, pruner: str) -> dict:
    """Runs the command and returns what it measured."""
    overrides = [f"model.path={model}", f"model.placement={placement}", f"pruner={pruner}", f"output={output}", "model=local"]
    sizes = ["data.n_calibration=4", "data.n_tokens_per_window=128", "budget.sparsity=0.5", "model.device=cpu"]
    subprocess.run([sys.executable, "-m", "selfprune.prune", *overrides, *sizes], check=True)
    return json.loads((output / "selfprune.json").read_text())


def n_different(first: Path, second: Path) -> int:
    """Tensors that are not the same, bit for bit."""
    maps = [json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"] for folder in (first, second)]
    different = len(maps[0].keys() ^ maps[1].keys())
    for name in maps[0].keys() & maps[1].keys():
        tensors = []
        for folder, names in zip((first, second), maps, strict=True):
            with safe_open(folder / names[name], framework="pt") as file:
                tensors.append(file.get_tensor(name))
        different += not torch.equal(*tensors)
    return different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty or new folder with room for three copies")
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--pruner", default="wanda")
    arguments = parser.parse_args()
    model = arguments.folder / "dense"
    if not model.exists():
        make_checkpoint(model, arguments.gigabytes)
    table = Table(title=f"{sum(path.stat().st_size for path in model.iterdir()) / 1e9:.2f} GB on disk, {arguments.pruner}")
    for column in ("placement", "peak memory", "expected", "seconds", "expected", "sparsity"):
        table.add_column(column)
    outputs = []
    for placement in ("STREAM", "WHOLE"):
        output = arguments.folder / placement.lower()
        shutil.rmtree(output, ignore_errors=True)
        began = time.monotonic()
        found = prune(model, output, placement, arguments.pruner)
        seconds = time.monotonic() - began
        expected, measured = found["expected"], found["measured"]
        memory = [f"{record['peak_memory_bytes'] / 1e9:.2f} GB" for record in (measured, expected)]
        table.add_row(placement, *memory, f"{seconds:.0f}", f"{expected['seconds']:.0f}", f"{found['sparsity']:.4%}")
        outputs.append(output)
    console = Console(width=120)
    console.print(table)
    console.print(f"{n_different(*outputs)} tensors differ between the two results")


if __name__ == "__main__":
    main()
