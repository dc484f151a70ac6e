"""Reads the runs of the study and writes its tables and its picture.

    python -m experiments.equal_budget.table runs/equal_budget

The controls and closed forms of a finished run count as searches of their own. `search KL` is the score of a main search's winner on
all search windows; KL, perplexity and accuracy are those of the report. Values are medians over seeds with the range. `results.jsonl`
keeps every search, those of runs that are no longer there too.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from experiments.results import Row, finished_runs, merged, searches

GROUP = ("model", "pruner", "sparsity", "search", "max_windows")
COLUMNS = ("search_kl", "report_kl", "perplexity", "accuracy")
OURS, CONTROL = "default", "evopress_scaled"
OF_OURS = (OURS, "without_language_model")
"""Searches of this project, which no control's are."""


def read_run(folder: Path) -> list[Row]:
    """One row for the main search of a finished run, each of its controls and each of its closed forms."""
    config = OmegaConf.load(folder / "config.yaml")
    overrides = json.loads((folder / "environment.json").read_text())["overrides"]
    chosen = dict(item.split("=", 1) for item in overrides if "=" in item)
    n_tokens_per_window, levels = config.data.n_tokens_per_window, config.search.levels.kind
    rows = []
    for search, found in searches(folder).items():
        n_tokens = found.pop("n_tokens")
        rows.append(
            {
                "model": Path(config.model.path).name,
                "pruner": chosen.get("pruner", "wanda") + ("" if levels == "MASKS" else f", {levels.lower()} levels"),
                "sparsity": config.budget.sparsity,
                "search": chosen.get("search", OURS) if search == "main" else search,
                "max_windows": config.search.max_tokens // n_tokens_per_window if n_tokens else 0,
                "seed": config.seed,
                "windows": n_tokens / n_tokens_per_window,
                **found,
                **(_main_search(folder, n_tokens_per_window, config.data.n_search) if search == "main" else {}),
            }
        )
    return rows


def _main_search(folder: Path, n_tokens_per_window: int, n_search: int) -> Row:
    """The winner's score on all search windows, and the course: windows spent and score of every incumbent that was scored on all."""
    course, n_tokens = [], 0
    for line in (folder / "archive.jsonl").read_text().splitlines():
        candidate = json.loads(line)
        if candidate["search"] == "main":
            n_tokens += candidate["n_tokens"]
            if candidate["gain"] is not None and candidate["n_windows"] == n_search:
                course.append([n_tokens / n_tokens_per_window, candidate["score"]])
    return {"search_kl": json.loads((folder / "report.json").read_text())["search"]["winner"]["score"], "course": course}


def to_table(rows: list[Row]) -> str:
    """Markdown, one line per model, pruner, sparsity, search and budget."""
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in GROUP)].append(row)
    header = ["model", "pruner", "sparsity", "search", "windows", "seeds", "search KL", "report KL", "perplexity", "accuracy"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for (model, pruner, sparsity, search, _), members in sorted(
        groups.items(), key=lambda item: (*item[0][:3], statistics.median(row["report_kl"] for row in item[1]))
    ):
        windows = f"{statistics.median(row['windows'] for row in members):,.0f}"
        cells = [_spread([row.get(column) for row in members]) for column in COLUMNS]
        lines.append(f"| {model} | {pruner} | {sparsity:.0%} | {search} | {windows} | {len(members)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def to_claims(rows: list[Row]) -> str:
    """Markdown, one line per model, pruner and sparsity: ours against the long control, and against the best of the others."""
    header = [
        "model", "pruner", "sparsity", "EvoPress: windows", "its search KL", "ours: windows", "search KL", "as low as EvoPress after",
        "with more: windows", "search KL", "report KL of ours", "of the best control at equal tokens",
    ]  # fmt: skip
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for cell in sorted({(row["model"], row["pruner"], row["sparsity"]) for row in rows}):
        here = [row for row in rows if (row["model"], row["pruner"], row["sparsity"]) == cell]
        long = _of(here, lambda row: row["search"] == CONTROL)
        budgets = sorted({row["max_windows"] for row in here if row["search"] == OURS})
        if not budgets:
            continue
        short, more = (_of(here, lambda row, n=n: row["search"] == OURS and row["max_windows"] == n) for n in (budgets[0], budgets[-1]))
        rivals = _of(here, lambda row: row["search"] not in (*OF_OURS, CONTROL) and row["max_windows"] in (0, budgets[0]))
        goal = statistics.median(row["search_kl"] for row in long) if long else None
        best = min({row["search"] for row in rivals}, key=lambda name: _median(_of(rivals, lambda r: r["search"] == name), "report_kl"))
        cells = [
            cell[0], cell[1], f"{cell[2]:.0%}", *_windows_and_score(long), *_windows_and_score(short), _reached(short, goal),
            *(_windows_and_score(more) if len(budgets) > 1 else ["", ""]), _spread([row["report_kl"] for row in short]),
            f"{best}: {_spread([row['report_kl'] for row in rivals if row['search'] == best])}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _of(rows: list[Row], is_wanted: Callable[[Row], bool]) -> list[Row]:
    return [row for row in rows if is_wanted(row)]


def _median(rows: list[Row], column: str) -> float:
    return statistics.median(row[column] for row in rows)


def _windows_and_score(rows: list[Row]) -> list[str]:
    if not rows:
        return ["", "not run"]
    return [f"{_median(rows, 'windows'):,.0f}", f"{_spread([row['search_kl'] for row in rows])}, {len(rows)} seeds"]


def _reached(rows: list[Row], goal: float | None) -> str:
    """Windows after which the incumbents stood at the goal on all search windows, and how many of the seeds got there."""
    if goal is None:
        return ""
    after = [min((n for n, score in row["course"] if score <= goal), default=None) for row in rows]
    there = [n for n in after if n is not None]
    return f"{statistics.median(there):,.0f} windows, {len(there)} of {len(after)} seeds" if there else f"0 of {len(after)} seeds"


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    middle = f"{statistics.median(known):.4g}"
    return middle if len(known) == 1 else f"{middle} ({min(known):.4g}–{max(known):.4g})"


def draw(rows: list[Row], path: Path) -> None:
    """Report-split KL against windows, a row of panels per model and pruner, a column per sparsity, one mark per run.

    Searches that end above uniform's KL are marked at the upper edge.
    """
    lines = sorted({(row["model"], row["pruner"]) for row in rows})
    columns = sorted({row["sparsity"] for row in rows})
    names = sorted({row["search"] for row in rows}, key=lambda name: (name not in OF_OURS, name != CONTROL, name))
    colours = {name: f"C{i % 10}" for i, name in enumerate(names)}
    figure = Figure(figsize=(4.0 * len(columns) + 1.8, 3.1 * len(lines)), layout="constrained")
    panels = figure.subplots(len(lines), len(columns), squeeze=False)
    handles: dict[str, object] = {}
    for i, (model, pruner) in enumerate(lines):
        for axes, sparsity in zip(panels[i], columns, strict=True):
            here = [row for row in rows if (row["model"], row["pruner"], row["sparsity"]) == (model, pruner, sparsity)]
            highest = 1.1 * max((row["report_kl"] for row in here if row["search"] == "uniform"), default=1.0)
            for name in names:
                ran = [row for row in here if row["search"] == name and row["windows"]]
                if ran:
                    marker = {"marker": "s" if name == CONTROL else "*" if name == OURS else "o", "linestyle": "none", "alpha": 0.7}
                    heights = [min(row["report_kl"], highest) for row in ran]
                    (handles[name],) = axes.plot([row["windows"] for row in ran], heights, color=colours[name], **marker)
                closed = [row["report_kl"] for row in here if row["search"] == name and not row["windows"]]
                if closed:
                    style = {"color": colours[name], "linestyle": ":", "linewidth": 1.2}
                    handles[name] = axes.axhline(min(statistics.median(closed), highest), **style)
            axes.set(xscale="log", xlim=(100, 30_000), ylim=(0, highest), title=f"{model}, {pruner}, {sparsity:.0%}")
            axes.set(xlabel="windows of 256 tokens spent" if i + 1 == len(lines) else "")
            axes.grid(alpha=0.3)
        panels[i][0].set_ylabel("report-split KL")
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    read = [row for folder in finished_runs(arguments.runs) for row in read_run(folder)]
    # Runs that differ in their searches alone have the same closed forms, which are kept once.
    rows = merged(arguments.output / "results.jsonl", read, (*GROUP, "seed"))
    (arguments.output / "table.md").write_text(f"{to_claims(rows)}\n{to_table(rows)}")
    draw(rows, arguments.output / "kl.png")


if __name__ == "__main__":
    main()
