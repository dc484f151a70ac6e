"""Where the seconds of a search go (loading levels, blocks, what comes after them), in one or several states of the repository.

    OMP_NUM_THREADS=1 python benchmarks/search_profile.py
    OMP_NUM_THREADS=1 python benchmarks/search_profile.py --states ../before . -- model=local model.path=FOLDER data=files \
        data.calibration=A.txt data.search=A.txt data.report=B.txt pruner=wanda budget.sparsity=0.5

A run is prepared as `python -m selfprune` prepares it; then random allocations at its target are scored, and gradients are taken
at others, as a search does. The states take turns, each in a process of its own, and medians are told. `after the blocks` is the
head and the loss, with their gradients where there are any; beside it stands what the head's matrix products alone take, timed
here. The digests tell whether the states agree to the last bit.

Shape suffixes: K tokens, D hidden width, V vocabulary.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("tokens/s", "load", "blocks", "after the blocks", "head's products", "after / products", "digest", "peak MB")
N_PRODUCTS = {"scores": 1, "gradients": 2}
"""Products with the head's matrix that a pass cannot do without."""


def main() -> None:
    """Prints a table: a row for scores and one for gradients of each state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=Path, nargs="+", default=[Path()], help="folders of the repository")
    parser.add_argument("--n-repeats", type=int, default=3)
    parser.add_argument("--n-allocations", type=int, default=4, help="that are scored")
    parser.add_argument("--n-gradients", type=int, default=1)
    parser.add_argument("--n-windows", type=int, default=8)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="of the run; after --")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    found: dict[Path, list[Any]] = {state: [] for state in arguments.states}
    for _ in range(arguments.n_repeats):
        for state in arguments.states:
            command = [sys.executable, __file__, *sys.argv[1:]]
            command.insert(2, "--measure")
            environment = {**os.environ, "PYTHONPATH": str(state.resolve() / "src")}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            found[state].append(json.loads(done.stdout.splitlines()[-1]))
    table = Table(*("state", "", *COLUMNS))
    for state, repeats in found.items():
        for kind in N_PRODUCTS:
            table.add_row(str(state), kind, *_cells([each[kind] | {"peak": each["peak"]} for each in repeats]))
    Console(width=150).print(table)


def _cells(repeats: list[dict[str, Any]]) -> list[str]:
    def median(name: str) -> float:
        return statistics.median(each[name] for each in repeats)

    after, products = (statistics.median(each[name] / each["seconds"] for each in repeats) for name in ("after", "products"))
    shares = [statistics.median(each[name] / each["seconds"] for each in repeats) for name in ("load", "blocks")]
    digests = {each["digest"] for each in repeats}
    return [
        f"{median('n_tokens') / median('seconds'):,.0f}",
        *(f"{share:.1%}" for share in (*shares, after, products)),
        f"{after / products:.2f}",
        " ".join(sorted(digests)),
        f"{median('peak'):,.0f}",
    ]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of this state's parts, and its peak memory."""
    import hydra

    from selfprune.configs.conf_path import conf_folder
    from selfprune.configs.config import RunConfig, register_schemas, to_config
    from selfprune.configs.methods import register_methods
    from selfprune.runs.preparation import prepare
    from selfprune.timing.resources import Resources

    register_schemas()
    register_methods()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = to_config(hydra.compose("config", overrides=["harness=none", *arguments.overrides]), RunConfig)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "archive.jsonl").touch()
        prepared = prepare(config, Path(folder), Resources(0, 0, 0.0))
        return measure_bench(prepared, arguments) | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def measure_bench(prepared: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same of scores and of gradients, on a bench that is ready."""
    from selfprune.models.blocks import gradients
    from selfprune.proposers.searches.random import Random

    bench, loaded = prepared.scorer.bench, prepared.loaded
    windows = list(range(arguments.n_windows))
    n_asked = arguments.n_allocations + arguments.n_gradients
    allocations = [each.allocation for each in Random().build(prepared.space, 0, prepared.language_model).ask(n_asked)]
    spent = {"load": 0.0, "blocks": 0.0, "after": 0.0}

    def timing(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*given, **named)
            finally:
                spent[name] += time.perf_counter() - began

        return timed

    bench.store.load = timing("load", bench.store.load)
    marks: list[float] = []
    loaded.blocks[0].register_forward_pre_hook(lambda *_: marks.append(time.perf_counter()))
    loaded.blocks[-1].register_forward_hook(lambda *_: marks.append(time.perf_counter()))
    found: dict[str, Any] = {}
    began = time.perf_counter()
    scores = [bench.scores(allocation, windows) for allocation in allocations[: arguments.n_allocations]]
    seconds = time.perf_counter() - began
    spent["blocks"] = sum(end - start for start, end in zip(marks[::2], marks[1::2], strict=True))
    spent["after"] = seconds - spent["load"] - spent["blocks"]
    n_tokens = len(windows) * bench.n_tokens_per_window
    found["scores"] = _told(spent, seconds, scores, n_tokens * len(scores), loaded, "scores")

    spent |= dict.fromkeys(spent, 0.0)
    gradients._loss_gradient = timing("after", gradients._loss_gradient)
    began = time.perf_counter()
    falls = []
    for allocation in allocations[arguments.n_allocations :]:
        denser, _ = bench.grid.bracket(allocation, prepared.config.search.level_fraction)
        falls.append(bench.falls(allocation, denser, windows))
    seconds = time.perf_counter() - began
    spent["blocks"] = seconds - spent["load"] - spent["after"]
    found["gradients"] = _told(spent, seconds, falls, n_tokens * len(falls), loaded, "gradients")
    return found


def _told(spent: dict[str, float], seconds: float, result: Any, n_tokens: int, loaded: Any, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(repr(result).encode()).hexdigest()[:8]
    products = N_PRODUCTS[kind] * n_tokens * head_seconds_per_token(loaded)
    return {**spent, "seconds": seconds, "n_tokens": n_tokens, "digest": digest, "products": products}


def head_seconds_per_token(loaded: Any) -> float:
    """Of the product of hidden states with the head's matrix."""
    import torch

    weight_VD = loaded.model.get_output_embeddings().weight
    hidden_KD = torch.randn(1024, weight_VD.shape[1], dtype=weight_VD.dtype, device=weight_VD.device)
    times = []
    with torch.no_grad():
        for _ in range(5):
            began = time.perf_counter()
            torch.nn.functional.linear(hidden_KD, weight_VD)
            times.append(time.perf_counter() - began)
    return statistics.median(times) / len(hidden_KD)


if __name__ == "__main__":
    main()
