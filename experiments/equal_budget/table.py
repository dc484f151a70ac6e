"""Reads the runs of the study and writes its tables and its picture.

    python -m experiments.equal_budget.table runs/equal_budget

The controls and closed forms of a finished run count as searches of their own. `search KL` is the score of a main search's winner
on all search windows; KL, perplexity and accuracy are those of the report. Values are medians over seeds with the range.
`results.jsonl` keeps every search, those of runs that are no longer there too.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from experiments.results import Row, finished_runs, merged, searches

CELL = ["model", "pruner", "sparsity"]
SEARCH = [*CELL, "search", "max_windows"]
COLUMNS = ["search_kl", "report_kl", "perplexity", "accuracy"]
OURS, CONTROL = "default", "evopress_scaled"
OF_OURS = (OURS, "without_language_model")
"""Searches of this project; the others are controls."""


def read_run(folder: Path) -> list[Row]:
    """One row for the main search of a finished run, each of its controls and each of its closed forms."""
    config = OmegaConf.load(folder / "config.yaml")
    overrides = json.loads((folder / "environment.json").read_text())["overrides"]
    chosen = dict(item.split("=", 1) for item in overrides if "=" in item)
    n_tokens_per_window, levels = config.data.n_tokens_per_window, config.search.levels.kind
    rows = []
    for search, found in searches(folder).items():
        n_tokens = found.pop("n_tokens")
        row = {
            "model": Path(config.model.path).name,
            "pruner": chosen.get("pruner", "wanda") + ("" if levels == "MASKS" else f", {levels.lower()} levels"),
            "sparsity": config.budget.sparsity,
            "search": chosen.get("search", OURS) if search == "main" else search,
            "max_windows": config.search.max_tokens // n_tokens_per_window if n_tokens else 0,
            "seed": config.seed,
            "windows": n_tokens / n_tokens_per_window,
            **found,
        }
        rows.append(row | (_main_search(folder, n_tokens_per_window, config.data.n_search) if search == "main" else {}))
    return rows


def _main_search(folder: Path, n_tokens_per_window: int, n_search: int) -> Row:
    """The winner's score on all search windows, and the course: windows spent, and score, of all incumbents scored on all."""
    course, n_tokens = [], 0
    for line in (folder / "archive.jsonl").read_text().splitlines():
        candidate = json.loads(line)
        if candidate["search"] == "main":
            n_tokens += candidate["n_tokens"]
            if candidate["gain"] is not None and candidate["n_windows"] == n_search:
                course.append([n_tokens / n_tokens_per_window, candidate["score"]])
    return {"search_kl": json.loads((folder / "report.json").read_text())["search"]["winner"]["score"], "course": course}


def searches_table(rows: pd.DataFrame) -> str:
    """Markdown, one line per model, pruner, sparsity, search and budget, the lowest report KL of a cell first."""
    lines = []
    for key, seeds in sorted(rows.groupby(SEARCH), key=lambda item: (*item[0][:3], item[1].report_kl.median())):
        lines.append([*_cell(key), key[3], _windows(seeds), str(len(seeds)), *(_spread(seeds[column]) for column in COLUMNS)])
    return _markdown([*CELL, "search", "windows", "seeds", "search KL", "report KL", "perplexity", "accuracy"], lines)


def claims_table(rows: pd.DataFrame) -> str:
    """Markdown, one line per model, pruner and sparsity: ours beside the long control, and beside the best of the others."""
    header = [
        *CELL, "EvoPress: windows", "search KL", "ours: windows", "search KL", "as low as EvoPress after",
        "ours with more: windows", "search KL", "report KL of ours", "of the best control at equal tokens",
    ]  # fmt: skip
    lines = []
    for key, here in rows.groupby(CELL):
        long, ours = here[here.search == CONTROL], here[here.search == OURS]
        if ours.empty:
            continue
        least = ours.max_windows.min()
        short, more = ours[ours.max_windows == least], ours[ours.max_windows > least]
        rivals = here[~here.search.isin([*OF_OURS, CONTROL]) & here.max_windows.isin([0, least])]
        best = rivals.groupby("search").report_kl.median().idxmin()
        lines.append(
            [
                *_cell(key), _windows(long), _spread(long.search_kl), _windows(short), _spread(short.search_kl),
                _reached(short, long.search_kl.median()), _windows(more), _spread(more.search_kl), _spread(short.report_kl),
                f"{best}: {_spread(rivals[rivals.search == best].report_kl)}",
            ]
        )  # fmt: skip
    return _markdown(header, lines)


def _reached(rows: pd.DataFrame, goal: float) -> str:
    """Windows after which an incumbent stood at the goal on all search windows, and in how many of the runs one did."""
    after = [min((n for n, score in course if score <= goal), default=None) for course in rows.course]
    there = pd.Series([n for n in after if n is not None], dtype=float)
    return f"{there.median():,.0f}, {len(there)} of {len(after)} seeds" if len(there) else f"never, {len(after)} seeds"


def _cell(key: tuple[Any, ...]) -> list[str]:
    return [key[0], key[1], f"{key[2]:.0%}"]


def _windows(rows: pd.DataFrame) -> str:
    return f"{rows.windows.median():,.0f}" if len(rows) else "not run"


def _spread(values: pd.Series) -> str:
    known = values.dropna()
    if known.empty:
        return "–"
    middle = f"{known.median():.4g}"
    return middle if len(known) == 1 else f"{middle} ({known.min():.4g}–{known.max():.4g})"


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ["---"] * len(header), *lines))


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Report-split KL against windows, a row of panels per model and pruner, a column per sparsity, one mark per run.

    What lies above uniform's KL is marked at the upper edge.
    """
    lines, columns = list(rows.groupby(CELL[:2]).groups), sorted(rows.sparsity.unique())
    names = sorted(rows.search.unique(), key=lambda name: (name not in OF_OURS, name != CONTROL, name))
    markers = {OURS: "*", CONTROL: "s"}
    figure = Figure(figsize=(4.0 * len(columns) + 1.8, 3.1 * len(lines)), layout="constrained")
    handles: dict[str, Any] = {}
    for row_of_panels, (model, pruner) in zip(figure.subplots(len(lines), len(columns), squeeze=False), lines, strict=True):
        for axes, sparsity in zip(row_of_panels, columns, strict=True):
            here = rows[(rows.model == model) & (rows.pruner == pruner) & (rows.sparsity == sparsity)]
            highest = 1.1 * here[here.search == "uniform"].report_kl.max() if len(here) else 1.0
            for i, name in enumerate(names):
                ran, style = here[here.search == name], {"color": f"C{i % 10}"}
                if len(ran) and ran.windows.max() == 0:
                    handles[name] = axes.axhline(ran.report_kl.median(), linestyle=":", **style)
                elif len(ran):
                    marker, heights = markers.get(name, "o"), ran.report_kl.clip(upper=highest)
                    (handles[name],) = axes.plot(ran.windows, heights, marker, alpha=0.7, **style)
            axes.set(xscale="log", xlim=(100, 30_000), ylim=(0, highest), title=f"{model}, {pruner}, {sparsity:.0%}")
            axes.grid(alpha=0.3)
        row_of_panels[0].set_ylabel("report-split KL")
    figure.supxlabel("windows spent")
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    read = [row for folder in finished_runs(arguments.runs) for row in read_run(folder)]
    # Runs that differ in their searches alone have the same closed forms, which are kept once.
    rows = pd.DataFrame(merged(arguments.output / "results.jsonl", read, [*SEARCH, "seed"]))
    (arguments.output / "table.md").write_text(f"{claims_table(rows)}\n{searches_table(rows)}")
    draw(rows, arguments.output / "kl.png")


if __name__ == "__main__":
    main()
