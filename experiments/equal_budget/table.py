"""Reads the runs of the study and writes its table and its picture.

    python experiments/equal_budget/table.py runs/equal_budget --output experiments/equal_budget

Every finished run below the folder counts, its controls and closed forms as searches of their own. `search KL` is the score of a
main search's winner on all search windows; KL and perplexity are those of the report. Values are medians over seeds with the
range; `results.jsonl` holds every search.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf

GROUP = ("model", "pruner", "sparsity", "search", "max_windows")
COLUMNS = ("search_kl", "report_kl", "perplexity", "accuracy")


def read_run(folder: Path) -> list[dict[str, Any]]:
    """One row for the main search of a finished run, each of its controls and each of its closed forms."""
    config, report = OmegaConf.load(folder / "config.yaml"), json.loads((folder / "report.json").read_text())
    overrides = json.loads((folder / "environment.json").read_text())["overrides"]
    chosen = dict(item.split("=", 1) for item in overrides if "=" in item)
    n_tokens_per_window = config.data.n_tokens_per_window
    searches = {row["name"]: row for row in report["rows"] if row["name"] not in ("dense", "winner")}
    searches[chosen.get("search", "default")] = next(row for row in report["rows"] if row["name"] == "winner")
    return [
        {
            "model": Path(config.model.path).name,
            "pruner": chosen.get("pruner", "wanda"),
            "sparsity": config.budget.sparsity,
            "search": search,
            "max_windows": config.search.max_tokens // n_tokens_per_window if row["n_tokens"] else 0,
            "seed": config.seed,
            "windows": row["n_tokens"] / n_tokens_per_window,
            "search_kl": report["search"]["winner"]["score"] if row["name"] == "winner" else None,
            "report_kl": row["kl"],
            "perplexity": row["perplexity"],
            "accuracy": _mean_accuracy(row),
            "seconds": row["seconds"],
        }
        for search, row in searches.items()
    ]


def to_table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per model, pruner, sparsity, search and budget."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in GROUP)].append(row)
    lines = [
        "| model | pruner | sparsity | search | windows | seeds | search KL | report KL | perplexity | accuracy |",
        "|---" * 10 + "|",
    ]
    for key, members in sorted(
        groups.items(), key=lambda item: (*item[0][:3], statistics.median(r["report_kl"] for r in item[1]))
    ):
        model, pruner, sparsity, search, _ = key
        windows = f"{statistics.median(row['windows'] for row in members):,.0f}"
        cells = [_spread([row[column] for row in members]) for column in COLUMNS]
        lines.append(f"| {model} | {pruner} | {sparsity:.0%} | {search} | {windows} | {len(members)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Report-split KL against windows, one panel per model and sparsity, one mark per run."""
    panels = sorted({(row["model"], row["sparsity"]) for row in rows})
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    colours = {name: f"C{i % 10}" for i, name in enumerate(sorted({row["search"] for row in rows}))}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for row in rows:
            if (row["model"], row["sparsity"]) == panel:
                marker = {"wanda": "o", "sparsegpt": "^"}.get(row["pruner"], "s")
                style = {"color": colours[row["search"]], "label": row["search"]}
                if row["windows"]:
                    axes.plot(row["windows"], row["report_kl"], marker, **style)
                else:
                    axes.axhline(row["report_kl"], linestyle=":", linewidth=1, **style)
        highest = max(row["report_kl"] for row in rows if (row["model"], row["sparsity"]) == panel)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(handles.values(), handles.keys(), fontsize=7)
        axes.set(
            xscale="log",
            xlim=(100, 30_000),
            ylim=(0, 1.1 * highest),
            xlabel="windows spent",
            ylabel="report-split KL",
            title=f"{panel[0]}, {panel[1]:.0%}",
        )
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _mean_accuracy(row: dict[str, Any]) -> float | None:
    accuracies = [task["acc"] for task in row["tasks"].values() if "acc" in task]
    return statistics.fmean(accuracies) if accuracies else None


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    middle = f"{statistics.median(known):.4g}"
    return middle if len(known) == 1 else f"{middle} ({min(known):.4g}–{max(known):.4g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    rows = [row for path in sorted(arguments.runs.glob("*/report.json")) for row in read_run(path.parent)]
    # Runs that differ in their searches alone have the same closed forms.
    rows = list({tuple(row[name] for name in (*GROUP, "seed")): row for row in rows}.values())
    (arguments.output / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (arguments.output / "table.md").write_text(to_table(rows))
    draw(rows, arguments.output / "kl.png")


if __name__ == "__main__":
    main()
