"""How much do the text and the number of calibration windows matter? One pruner, uniform sparsity, measured on several texts.

    python -m experiments.calibration.study FOLDER --calibrate own=A.txt code=B.txt self_generated noise \
        --report own=C.txt other=D.txt

FOLDER is a Hugging Face checkpoint. Every text of `--calibrate` (a file, or `self_generated`: the model writes it, or `noise`:
tokens at random) serves with every number of windows and every seed; every pruned model is measured on the same windows of every
text of `--report`, as KL to the dense model. A file may serve for both: its first half calibrates, and its second is reported on.
What `results.jsonl` has already is not measured again, and `table.md` is made of it.

Shape suffixes: N windows, T tokens.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from experiments.results import spread
from selfprune.configs.methods import find_methods
from selfprune.data.encoding import encode_text
from selfprune.data.self_generated import generate_tokens
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.models.loading import LoadedModel, load_model
from selfprune.models.model_config import ModelConfig
from selfprune.models.units import weight_view
from selfprune.pruning.sequential import prune_in_place

N_AT_ONCE = 4


def main() -> None:
    """Measures what is missing, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibrate", nargs="+", required=True, help="NAME=FILE, self_generated or noise")
    parser.add_argument("--report", nargs="+", required=True, help="NAME=FILE")
    parser.add_argument("--pruner", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--n-windows", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-report", type=int, default=32)
    parser.add_argument("--n-tokens", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    results = arguments.output / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    for row in measured(arguments, {key_of(row) for row in rows}):
        rows.append(row)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    (arguments.output / "table.md").write_text(table(rows))


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a pruned model from others."""
    return tuple(row[name] for name in ("model", "pruner", "sparsity", "calibration", "n_windows", "seed"))


def measured(arguments: argparse.Namespace, known: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """The KL on every report text of one pruned model after the other."""
    loaded = load_model(ModelConfig(str(arguments.model), device="cpu"))
    windows_NT, reports = texts(arguments, loaded)
    evaluators = {
        name: WindowEvaluator({"kl": KLDivergence()}, loaded.model, loaded.blocks, report_NT, N_AT_ONCE)
        for name, report_NT in reports.items()
    }
    dense = {unit.name: weight_view(loaded.model, unit).clone() for unit in loaded.units}
    runs = product(arguments.pruner, arguments.calibrate, sorted(arguments.n_windows), arguments.seeds)
    for pruner, source, n_windows, seed in runs:
        name = source.partition("=")[0]
        row = {"model": arguments.model.name, "pruner": pruner, "sparsity": arguments.sparsity, "calibration": name}
        row |= {"n_windows": n_windows, "seed": seed}
        if key_of(row) in known:
            continue
        for unit in loaded.units:
            weight_view(loaded.model, unit).copy_(dense[unit.name])
        generator = torch.Generator().manual_seed(seed)
        if name == "self_generated":
            start = (loaded.tokenizer.bos_token_id or loaded.tokenizer.eos_token_id or 0,)
            calibration_NT = generate_tokens(loaded.model, loaded.tokenizer, n_windows, arguments.n_tokens, seed, start)
        elif name == "noise":
            shape = n_windows, arguments.n_tokens
            calibration_NT = torch.randint(loaded.model.config.vocab_size, shape, generator=generator)
        else:
            calibration_NT = windows_NT[name][torch.randperm(len(windows_NT[name]), generator=generator)[:n_windows]]
        allocation = {unit.name: round(arguments.sparsity * unit.n_items) for unit in loaded.units}
        prune_in_place(loaded, calibration_NT, find_methods("pruner")[pruner](), allocation, N_AT_ONCE)
        versions = [(name, n_windows, seed)] * len(loaded.blocks)
        for text, evaluator in evaluators.items():
            row[f"kl on {text}"] = round(statistics.fmean(evaluator.evaluate(versions)["kl"]), 6)
        yield row


def texts(arguments: argparse.Namespace, loaded: LoadedModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The windows of every calibration file, and those that are reported on, which share none."""
    calibrate = dict(each.split("=", 1) for each in arguments.calibrate if "=" in each)
    report = dict(each.split("=", 1) for each in arguments.report)
    cut: dict[str, Tensor] = {}
    for path in {*calibrate.values(), *report.values()}:
        tokens_K = encode_text(loaded.tokenizer, Path(path).read_text(encoding="utf-8", errors="replace"))
        cut[path] = tokens_K[: len(tokens_K) // arguments.n_tokens * arguments.n_tokens].view(-1, arguments.n_tokens)
    half = {path: len(cut[path]) // 2 if path in report.values() and path in calibrate.values() else None for path in cut}
    windows = {name: cut[path][: half[path]] for name, path in calibrate.items()}
    n_needed = max(arguments.n_windows)
    if few := [name for name in calibrate if len(windows[name]) < n_needed]:
        raise SystemExit(f"{few} hold fewer than {n_needed} windows of {arguments.n_tokens} tokens; give more text")
    generator = torch.Generator().manual_seed(0)
    reports = {}
    for name, path in report.items():
        rest_NT = cut[path][half[path] or 0 :]
        reports[name] = rest_NT[torch.randperm(len(rest_NT), generator=generator)[: arguments.n_report]]
    return windows, reports


def table(rows: list[dict[str, Any]]) -> str:
    """Medians and ranges over seeds."""
    lines = ["# KL to the dense model by calibration text and number of windows", ""]
    measures = sorted({name for row in rows for name in row if name.startswith("kl on ")})
    head = ["model", "pruner", "sparsity", "calibration", "windows", "seeds", *measures]
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key_of(row)[:-1], []).append(row)
    for key, group in sorted(groups.items(), key=lambda each: [str(part).zfill(6) for part in each[0]]):
        cells = [spread(pd.Series([row.get(name) for row in group])) for name in measures]
        lines.append(f"| {' | '.join([*map(str, key), str(len(group)), *cells])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
