"""Times calibration and pruning of one layer per method and shape, beside the published loops written out plainly.

    python benchmarks/pruning.py
    python benchmarks/pruning.py --shapes 4096x4096 --methods sparsegpt wanda --n-sequences 8 --n-tokens 512

Every case runs in two processes of its own, one for the time and one for the peak memory, in which freed memory goes back to
the system at once. The memory is that beyond the inputs, the weights and the pruned weights. `of matmul` is the rate of the work
that a method cannot avoid (the Gram matrix as a symmetric product, one factorisation, the updates) as a share of this machine's
measured matrix product.

Shape suffixes: O out, I in, N sequences, T tokens, B columns of a block.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from selfprune.configs.methods import find_methods
from selfprune.timing.machine import matmul_flops_per_second

SPARSITY = 0.5
BLOCK_WIDTH = 128
KEEPING: dict[str, str] = {}
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""How glibc allocates: as always, or so that what is resident is what is in use."""
METHODS = ["wanda", "sparsegpt", "sparsegpt 2:4", "magnitude", "ria", "dsnot", "admm", "alps"]


def plain_wanda(weight_OI: Tensor, inputs_NTI: Tensor) -> Tensor:
    """The published Wanda: a running mean of squared norms, and a stable sort of every row."""
    means_I = torch.zeros(weight_OI.shape[1], device=weight_OI.device)
    for n_seen, inputs_TI in enumerate(inputs_NTI):
        inputs_IT = inputs_TI.t().float()
        means_I *= n_seen / (n_seen + 1)
        means_I += torch.norm(inputs_IT, p=2, dim=1) ** 2 / (n_seen + 1)
    metric_OI = torch.abs(weight_OI) * torch.sqrt(means_I.reshape(1, -1))
    order_OI = torch.sort(metric_OI, dim=-1, stable=True)[1]
    goes_OI = torch.zeros_like(metric_OI) == 1
    goes_OI.scatter_(1, order_OI[:, : int(metric_OI.shape[1] * SPARSITY)], True)
    pruned_OI = weight_OI.clone()
    pruned_OI[goes_OI] = 0
    return pruned_OI


def plain_sparsegpt(weight_OI: Tensor, inputs_NTI: Tensor, kept_of: tuple[int, int] | None = None) -> Tensor:
    """The published SparseGPT: three factorisations, then column by column with a rank-one update of the rest of the block."""
    n_in = weight_OI.shape[1]
    hessian_II = torch.zeros(n_in, n_in, device=weight_OI.device)
    for n_seen, inputs_TI in enumerate(inputs_NTI):
        hessian_II *= n_seen / (n_seen + 1)
        inputs_IT = math.sqrt(2 / (n_seen + 1)) * inputs_TI.t().float()
        hessian_II += inputs_IT.matmul(inputs_IT.t())
    weight_OI = weight_OI.clone().float()
    dead_I = torch.diag(hessian_II) == 0
    hessian_II[dead_I, dead_I] = 1
    weight_OI[:, dead_I] = 0
    every = torch.arange(n_in, device=weight_OI.device)
    hessian_II[every, every] += 0.01 * torch.mean(torch.diag(hessian_II))
    hessian_II = torch.linalg.cholesky(hessian_II)
    hessian_II = torch.cholesky_inverse(hessian_II)
    factor_II = torch.linalg.cholesky(hessian_II, upper=True)
    del hessian_II
    for start in range(0, n_in, BLOCK_WIDTH):
        stop = min(start + BLOCK_WIDTH, n_in)
        block_OB = weight_OI[:, start:stop].clone()
        result_OB, errors_OB = torch.zeros_like(block_OB), torch.zeros_like(block_OB)
        factor_BB = factor_II[start:stop, start:stop]
        goes_OB = torch.zeros_like(block_OB) == 1
        if kept_of is None:
            scores_OB = block_OB**2 / torch.diag(factor_BB).reshape(1, -1) ** 2
            goes_OB = scores_OB <= torch.sort(scores_OB.flatten())[0][int(scores_OB.numel() * SPARSITY)]
        for j in range(stop - start):
            if kept_of is not None and j % kept_of[1] == 0:
                group = slice(j, j + kept_of[1])
                scores_OB = block_OB[:, group] ** 2 / torch.diag(factor_BB)[group].reshape(1, -1) ** 2
                lowest_OB = torch.topk(scores_OB, kept_of[1] - kept_of[0], dim=1, largest=False)[1]
                goes_OB.scatter_(1, j + lowest_OB, True)
            kept_O = block_OB[:, j].clone()
            kept_O[goes_OB[:, j]] = 0
            result_OB[:, j] = kept_O
            error_O = (block_OB[:, j] - kept_O) / factor_BB[j, j]
            block_OB[:, j:] -= error_O.unsqueeze(1).matmul(factor_BB[j, j:].unsqueeze(0))
            errors_OB[:, j] = error_O
        weight_OI[:, start:stop] = result_OB
        weight_OI[:, stop:] -= errors_OB.matmul(factor_II[start:stop, stop:])
    return weight_OI


PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wanda": plain_wanda,
    "sparsegpt": plain_sparsegpt,
    "sparsegpt 2:4": lambda weight_OI, inputs_NTI: plain_sparsegpt(weight_OI, inputs_NTI, (2, 4)),
}


def ours(method: str, weight_OI: Tensor, inputs_NTI: Tensor) -> Tensor:
    """Calibration and pruning by the package."""
    name, _, pattern = method.partition(" ")
    # the published SparseGPT takes one weight a block too many, so that results can be compared only if ours does too
    options = {"reference_threshold": True} if name == "sparsegpt" and not pattern else {}
    pruner = find_methods("pruner")[name](pattern=pattern, **options)
    statistics = pruner.statistics(1, weight_OI.shape[1], len(inputs_NTI))
    for inputs_TI in inputs_NTI:
        statistics.update(inputs_TI[None])
    pruned = pruner.prune(weight_OI, statistics, int(weight_OI.numel() * SPARSITY))
    kept_OI = weight_OI.clone() if pruned.weight_OI is None else pruned.weight_OI
    return kept_OI.masked_fill_(~pruned.kept, 0)


def work_flops(method: str, n_out: int, n_in: int, n_tokens: int) -> float:
    """Floating-point operations that the method cannot avoid; 0 where products do not matter."""
    if method.startswith("sparsegpt"):
        return n_tokens * n_in**2 + n_in**3 / 3 + n_out * n_in**2
    return 0.0


class PeakMemory:
    """Most memory beyond what was there when the measurement began, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.n_bytes = 0

    def __enter__(self) -> "PeakMemory":
        self._start, self._on = self._now(), True
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._thread.join()
        if self.device.type == "cuda":
            self.n_bytes = torch.cuda.max_memory_allocated(self.device) - self._start

    def _watch(self) -> None:
        while self._on and self.device.type == "cpu":
            self.n_bytes = max(self.n_bytes, self._now() - self._start)
            time.sleep(0.002)

    def _now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak memory of one case, in this process; the best of the repetitions."""
    n_out, n_in = map(int, arguments.case_shape.split("x"))
    device = torch.device(arguments.device)
    generator = torch.Generator(device).manual_seed(0)
    weight_OI = torch.randn(n_out, n_in, generator=generator, device=device) * 0.02
    # correlated inputs of unequal scale, as activations are
    mixing_II = torch.randn(n_in, n_in, generator=generator, device=device) / math.sqrt(n_in)
    scales_I = torch.exp(0.5 * torch.randn(n_in, generator=generator, device=device))
    draws_NTI = torch.randn(arguments.n_sequences, arguments.n_tokens, n_in, generator=generator, device=device)
    inputs_NTI = (draws_NTI + draws_NTI @ mixing_II) * scales_I
    del draws_NTI, mixing_II
    run = PLAIN[arguments.case_method] if arguments.plain else (lambda w, x: ours(arguments.case_method, w, x))
    # libraries make their threads and handles at first use
    run(weight_OI[:64, :256].contiguous(), inputs_NTI[:1, :, :256].contiguous())
    seconds = math.inf
    for _ in range(arguments.repeat):
        with PeakMemory(device) as peak:
            start = time.perf_counter()
            result_OI = run(weight_OI, inputs_NTI)
            float(result_OI[0, 0])
            seconds = min(seconds, time.perf_counter() - start)
    if arguments.save:
        torch.save(result_OI, arguments.save)
    n_beyond = peak.n_bytes - result_OI.numel() * result_OI.element_size()
    found = {"seconds": seconds, "peak_bytes": n_beyond, "matmul": matmul_flops_per_second(device)}
    work = work_flops(arguments.case_method, n_out, n_in, arguments.n_sequences * arguments.n_tokens)
    return found | {"fraction": work / seconds / found["matmul"]}


def compare(first: str, second: str) -> str:
    """How far two results are from each other."""
    a_OI, b_OI = torch.load(first), torch.load(second)
    same_OI = (a_OI == 0) == (b_OI == 0)
    rows_O = same_OI.all(dim=1)
    largest = float((a_OI - b_OI)[rows_O].abs().max() / b_OI.abs().max()) if rows_O.any() else math.nan
    return f"masks {1 - float(same_OI.float().mean()):.0e} apart; in equal rows weights {largest:.0e} of the largest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x4096"], help="out x in")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--n-sequences", type=int, default=8)
    parser.add_argument("--n-tokens", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for hidden in ("--case-shape", "--case-method", "--save"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case_method:
        sys.stdout.write(json.dumps(measure(arguments)) + "\n")
        return
    show(arguments)


def show(arguments: argparse.Namespace) -> None:
    """Runs all cases one after the other and prints their table."""
    table = Table(
        title=f"{arguments.n_sequences} x {arguments.n_tokens} tokens, {arguments.device}, {torch.get_num_threads()} threads"
    )
    for column in ("shape", "method", "seconds", "plain", "ratio", "peak MB", "plain MB", "ratio", "of matmul", "same result"):
        table.add_column(column)

    def case(shape: str, method: str, *more: str) -> dict[str, float]:
        sizes = ["--n-sequences", str(arguments.n_sequences), "--n-tokens", str(arguments.n_tokens)]
        rest = ["--repeat", str(arguments.repeat), "--device", arguments.device, "--case-shape", shape, "--case-method", method]
        found: dict[str, float] = {}
        for environment, key in ((KEEPING, "seconds"), (RETURNING, "peak_bytes")):
            command = [sys.executable, __file__, *sizes, *rest, *more]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
            if done.returncode:
                raise SystemExit(done.stderr)
            measured = json.loads(done.stdout)
            found |= measured if key == "seconds" else {key: measured[key]}
        return found

    with tempfile.TemporaryDirectory() as folder:
        for shape in arguments.shapes:
            for method in arguments.methods:
                ours_path, plain_path = f"{folder}/ours.pt", f"{folder}/plain.pt"
                found = case(shape, method, "--save", ours_path)
                cells = [shape, method, f"{found['seconds']:.2f}", "", "", f"{found['peak_bytes'] / 1e6:.0f}", "", "", "", ""]
                if method in PLAIN:
                    plain = case(shape, method, "--plain", "--save", plain_path)
                    cells[3], cells[4] = f"{plain['seconds']:.2f}", f"{plain['seconds'] / found['seconds']:.1f}x"
                    cells[6] = f"{plain['peak_bytes'] / 1e6:.0f}"
                    cells[7] = f"{found['peak_bytes'] / plain['peak_bytes']:.2f}"
                    cells[9] = compare(ours_path, plain_path)
                if found["fraction"]:
                    cells[8] = f"{found['fraction']:.0%}"
                table.add_row(*cells)
    Console(width=190).print(table)


if __name__ == "__main__":
    main()
