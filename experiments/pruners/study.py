"""Prunes one model uniformly with every method, at several sparsities and calibration seeds, and measures its perplexity.

    python experiments/pruners/study.py MODEL --calibration A.txt --report B.txt
    python experiments/pruners/study.py --table

Results go to results.jsonl beside this file, one line each; what stands there already is not done again.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

from omegaconf import OmegaConf

from selfprune.configs.methods import find_methods
from selfprune.data.data_config import Bos, DataConfig, Source
from selfprune.data.splits import draw_splits
from selfprune.evaluators.window_metrics.perplexity import Perplexity
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.models.loading import load_model, max_positions
from selfprune.models.model_config import ModelConfig
from selfprune.models.units import weight_view
from selfprune.pruners.base import Pruner
from selfprune.pruning.sequential import prune_in_place

RESULTS = Path(__file__).with_name("results.jsonl")
SPARSITIES = (0.5, 0.7)
SEEDS = (0, 1, 2)
VARIANTS = ("wanda scope=MATRIX", "magnitude scope=ROW", "obd scope=MATRIX", "taylor scope=MATRIX")
BATCH_SIZE = 8


def read_results() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run(arguments: argparse.Namespace) -> None:
    loaded = load_model(ModelConfig(arguments.model, device=arguments.device))
    dense = {unit.name: weight_view(loaded.model, unit).clone() for unit in loaded.units}
    done = {(row["method"], row["level"], row["seed"]) for row in read_results()}
    for seed in SEEDS:
        data = DataConfig(
            Source.FILES,
            arguments.calibration,
            arguments.calibration,
            arguments.report,
            arguments.n_tokens,
            n_calibration=arguments.n_calibration,
            n_search=1,
            n_report=arguments.n_report,
            bos=Bos.NEVER,
        )
        splits = draw_splits(data, loaded.tokenizer, seed, max_positions=max_positions(loaded.model))
        evaluator = WindowEvaluator({"nll": Perplexity()}, loaded.model, loaded.blocks, splits.report_NT, BATCH_SIZE)
        for method in arguments.methods:
            for level in SPARSITIES:
                if (method, level, seed) in done:
                    continue
                for unit in loaded.units:
                    weight_view(loaded.model, unit).copy_(dense[unit.name])
                began = time.monotonic()
                if method != "dense":
                    pruner = build(method)
                    allocation = {unit.name: round(level * unit.n_items) for unit in loaded.units}
                    prune_in_place(loaded, splits.calibration_NT, pruner, allocation, BATCH_SIZE)
                seconds = time.monotonic() - began
                versions = [f"{method} {level} {seed}"] * len(loaded.blocks)
                perplexity = math.exp(statistics.fmean(next(iter(evaluator.evaluate(versions).values()))))
                row = {"method": method, "level": level, "seed": seed, "perplexity": perplexity, "seconds": round(seconds, 1)}
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def build(method: str) -> Pruner:
    """The pruner of a name and options, such as `wanda scope=MATRIX`."""
    name, *options = method.split()
    return OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(find_methods("pruner")[name]), OmegaConf.from_dotlist(options))
    )


def table() -> str:
    """Perplexity, mean and standard deviation over calibration seeds, methods ordered by their 70%."""
    rows = read_results()
    cells = {}
    for row in rows:
        cells.setdefault((row["method"], row["level"]), []).append(row)
    methods = sorted(
        {row["method"] for row in rows}, key=lambda m: statistics.fmean(r["perplexity"] for r in cells[m, SPARSITIES[-1]])
    )
    levels = SPARSITIES
    lines = ["| | " + " | ".join(str(level) for level in levels) + " | seconds |", "|---" * (len(levels) + 2) + "|"]
    for method in methods:
        found = [[row["perplexity"] for row in cells.get((method, level), [])] for level in levels]
        shown = [
            f"{statistics.fmean(v):.1f} ± {statistics.stdev(v):.1f}" if len(v) > 1 else "".join(f"{x:.1f}" for x in v)
            for v in found
        ]
        seconds = statistics.fmean(row["seconds"] for row in rows if row["method"] == method)
        lines.append(f"| {method} | " + " | ".join(shown) + f" | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder or hub id")
    parser.add_argument("--calibration", help="text file or folder")
    parser.add_argument("--report", help="text file or folder that calibration does not use")
    parser.add_argument("--methods", nargs="+", default=["dense", *find_methods("pruner"), *VARIANTS], help="names, with options")
    parser.add_argument("--n-tokens", type=int, default=256)
    parser.add_argument("--n-calibration", type=int, default=64)
    parser.add_argument("--n-report", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--table", action="store_true", help="print the table of what is done")
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments)
    print(table())


if __name__ == "__main__":
    main()
