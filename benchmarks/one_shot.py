"""Times calibration and pruning of a whole random Llama, without files, beside the time that its products alone would take.

    python benchmarks/one_shot.py
    python benchmarks/one_shot.py --width 4096 --n-blocks 32 --vocabulary 32000 --n-sequences 128 --n-tokens 2048 --dtype bfloat16

`products` counts the two passes through every block at the measured rate of matrix products in the model's number format; for
methods with a Hessian also its half of a Gram matrix, one factorisation and the updates, at the rate in fp32.
"""

import argparse
import time

import torch
from random_llama import random_llama, synchronise
from rich.console import Console
from rich.table import Table
from torch import Tensor

from selfprune.configs.methods import find_methods
from selfprune.models.loading import LoadedModel
from selfprune.models.units import weight_view
from selfprune.pruners.base import Pruner
from selfprune.pruning.sequential import prune_in_place
from selfprune.statistics.input_gram import InputGram
from selfprune.timing.machine import matmul_flops_per_second, peak_memory_bytes

SPARSITY = 0.5
METHODS = ["wanda", "sparsegpt", "sparsegpt 2:4", "magnitude", "ria", "dsnot", "admm", "alps"]


def seconds_of_products(loaded: LoadedModel, n_tokens: int, is_gram: bool) -> float:
    """Seconds of the products that cannot be avoided, at this machine's rates."""
    block = [weight_view(loaded.model, unit).shape for unit in loaded.units if unit.block == 0]
    # queries, keys and values share an input, and so do gate and up
    inputs = [block[0][1], block[3][1], block[4][1], block[6][1]]
    n_passes = 2 * 2 * n_tokens * sum(n_out * n_in for n_out, n_in in block)
    n_gram = sum(n_tokens * n_in**2 + n_in**3 / 3 for n_in in inputs) + sum(n_out * n_in**2 for n_out, n_in in block)
    seconds = n_passes / matmul_flops_per_second(loaded.device, loaded.model.dtype)
    return len(loaded.blocks) * (seconds + (n_gram / matmul_flops_per_second(loaded.device) if is_gram else 0.0))


def measure(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    loaded = random_llama(arguments.width, arguments.n_blocks, arguments.vocabulary, getattr(torch, arguments.dtype), device)
    windows_NT = torch.randint(arguments.vocabulary, (arguments.n_sequences, arguments.n_tokens))
    dense = {unit.name: weight_view(loaded.model, unit).clone() for unit in loaded.units}
    allocation = {unit.name: int(SPARSITY * unit.n_weights) for unit in loaded.units}
    table = Table(
        title=f"{sum(allocation.values()) / SPARSITY:,.0f} weights, {arguments.n_sequences} x {arguments.n_tokens} tokens, "
        f"{arguments.dtype}, {device}, {torch.get_num_threads()} threads"
    )
    for column in ("method", "seconds", "products", "share", "peak GB"):
        table.add_column(column, justify="right")
    for method in arguments.methods:
        name, _, pattern = method.partition(" ")
        pruner = find_methods("pruner")[name](pattern=pattern)
        for unit in loaded.units:
            weight_view(loaded.model, unit).copy_(dense[unit.name])
        seconds = timed_pruning(loaded, windows_NT, pruner, allocation, arguments.batch_size)
        products = seconds_of_products(loaded, windows_NT.numel(), isinstance(pruner.statistics(1, 1, 1), InputGram))
        peak_gb = peak_memory_bytes(device) / 1e9
        table.add_row(method, f"{seconds:.1f}", f"{products:.1f}", f"{products / seconds:.0%}", f"{peak_gb:.1f}")
    Console(width=120).print(table)


def timed_pruning(loaded: LoadedModel, windows_NT: Tensor, pruner: Pruner, allocation: dict[str, int], batch_size: int) -> float:
    """Seconds of the walk over all blocks."""
    if loaded.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(loaded.device)
    synchronise(loaded.device)
    start = time.perf_counter()
    removed = prune_in_place(loaded, windows_NT, pruner, allocation, batch_size)
    synchronise(loaded.device)
    assert removed == allocation
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--n-blocks", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--n-sequences", type=int, default=16)
    parser.add_argument("--n-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
