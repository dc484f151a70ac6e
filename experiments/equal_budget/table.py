"""Reads the runs of the study and writes its tables and its picture.

    python -m experiments.equal_budget.table runs/equal_budget

The controls and closed forms of a finished run count as searches of their own. `search KL` is the score of a main search's winner
on all search windows; KL, perplexity and accuracy are those of the report. Values are medians over seeds with the range.
`results.jsonl` keeps every search, those of runs that are no longer there too.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.results import Row, read_study, searches, spread
from selfprune.configs.methods import find_methods
from selfprune.levels.levels_config import LevelKind
from selfprune.reports.comparisons.comparison import interval
from selfprune.reports.comparisons.finished_runs import FinishedRun
from selfprune.reports.markdown import table_lines

CELL = ["model", "pruner", "sparsity"]
SEARCH = [*CELL, "search", "max_tokens"]
COLUMNS = ["search_kl", "report_kl", "perplexity", "accuracy"]
OURS, CONTROL = "default", "evopress_scaled"
WITHOUT = "without_language_model"
KINDS = {"AUTO": "", "MASKS": ", masks", "BUILT": ", built levels"}
"""What is added to a pruner's name where its levels are not of its own kind."""
OF_OURS = (OURS, WITHOUT)
"""Searches of this project; the others are controls."""


def read_run(run: FinishedRun) -> list[Row]:
    """One row for the main search of a finished run, each of its controls and each of its closed forms."""
    chosen = dict(item.split("=", 1) for item in run.report["environment"]["overrides"] if "=" in item)
    pruner, kind = chosen.get("pruner", "wanda"), run.config["search.levels.kind"]
    own = LevelKind.of(find_methods("pruner")[pruner])
    rows = []
    for search, found in searches(run).items():
        row = {
            "model": Path(run.config["model.path"]).name,
            "pruner": pruner if kind == own else pruner + KINDS[kind],
            "sparsity": float(run.config["budget.sparsity"]),
            "search": chosen.get("search", OURS) if search == "main" else search,
            "max_tokens": int(run.config["search.max_tokens"]) if found["n_tokens"] else 0,
            "seed": int(run.seed),
            **found,
        }
        rows.append(row | ({"search_kl": run.report["search"]["winner"]["score"]} if search == "main" else {}))
    return rows


def searches_table(rows: pd.DataFrame) -> list[str]:
    """Markdown, one line per model, pruner, sparsity, search and budget, the lowest report KL of a cell first."""
    lines = []
    for key, seeds in sorted(rows.groupby(SEARCH), key=lambda item: (*item[0][:3], item[1].report_kl.median())):
        spent = [_tokens(seeds), f"{seeds.seconds.median():,.0f}"]
        lines.append([*_cell(key), key[3], *spent, str(len(seeds)), *(spread(seeds[column]) for column in COLUMNS)])
    return table_lines([*CELL, "search", "tokens", "seconds", "seeds", "search KL", "report KL", "perplexity", "accuracy"], lines)


def claims_table(rows: pd.DataFrame) -> list[str]:
    """Markdown, one line per model, pruner and sparsity: ours beside the long control, and beside the best of the others."""
    header = [
        *CELL, "EvoPress: tokens", "search KL", "ours: tokens", "search KL", "seeds below its median",
        "ours with more: tokens", "search KL", "seeds below", "report KL of ours", "of the best control at equal tokens",
    ]  # fmt: skip
    lines = []
    for key, here in rows.groupby(CELL):
        long, ours = here[here.search == CONTROL], here[here.search == OURS]
        if ours.empty:
            continue
        least = ours.max_tokens.min()
        short, more = ours[ours.max_tokens == least], ours[ours.max_tokens > least]
        rivals = here[~here.search.isin([*OF_OURS, CONTROL]) & here.max_tokens.isin([0, least])]
        best = rivals.groupby("search").report_kl.median().idxmin()
        compared = [_tokens(long), spread(long.search_kl)]
        for ran in (short, more):
            compared += [_tokens(ran), spread(ran.search_kl), _below(ran, long.search_kl.median())]
        of_best = spread(rivals[rivals.search == best].report_kl)
        lines.append([*_cell(key), *compared, spread(short.report_kl), f"{best}: {of_best}"])
    return table_lines(header, lines)


def without_table(rows: pd.DataFrame) -> list[str]:
    """Markdown, one line per model, pruner, sparsity and budget: report KL of ours less that without the language model."""
    columns = [*CELL, "max_tokens"]
    pairs = rows[rows.search == OURS].merge(rows[rows.search == WITHOUT], on=[*columns, "seed"], suffixes=("", "_without"))
    lines = []
    for key, seeds in pairs.groupby(columns):
        differences = seeds.report_kl - seeds.report_kl_without
        paired = "{:+.4f} ± {:.4f}".format(*interval(list(differences))) if len(seeds) > 1 else f"{differences.iloc[0]:+.4f}"
        spent = f"{key[3]:,}"
        means = [f"{seeds[column].mean():.4f}" for column in ("report_kl", "report_kl_without")]
        lines.append([*_cell(key), spent, str(len(seeds)), *means, paired, f"{(differences == 0).sum()} of {len(seeds)}"])
    return table_lines([*CELL, "budget", "seeds", OURS, WITHOUT, "difference, 95% interval", "the same winner"], lines)


def _below(rows: pd.DataFrame, goal: float) -> str:
    return f"{(rows.search_kl <= goal).sum()} of {len(rows)}" if len(rows) and pd.notna(goal) else ""


def _cell(key: tuple[Any, ...]) -> list[str]:
    return [key[0], key[1], f"{key[2]:.0%}"]


def _tokens(rows: pd.DataFrame) -> str:
    return f"{rows.n_tokens.median():,.0f}" if len(rows) else "not run"


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Report-split KL against tokens, a row of panels per model and pruner, a column per sparsity, one mark per run.

    What lies above uniform's KL is marked at the upper edge. Levels of a kind that is not the default stand in the table alone.
    """
    rows = rows[~rows.pruner.str.endswith(tuple(filter(None, KINDS.values())))]
    lines, columns = list(rows.groupby(CELL[:2]).groups), sorted(rows.sparsity.unique())
    is_closed = rows.groupby("search").n_tokens.max() == 0
    names = sorted(is_closed.index[~is_closed], key=lambda name: (name not in OF_OURS, name != CONTROL, name))
    colours = dict(zip(names, colormaps["tab10"].colors, strict=False))
    dashes = dict(zip(is_closed.index[is_closed], ["--", ":", "-.", (0, (8, 2))], strict=False))
    markers = {OURS: "*", CONTROL: "s"}
    figure = Figure(figsize=(4.0 * len(columns) + 1.8, 3.1 * len(lines)), layout="constrained")
    handles: dict[str, Any] = {}
    for row_of_panels, (model, pruner) in zip(figure.subplots(len(lines), len(columns), squeeze=False), lines, strict=True):
        for axes, sparsity in zip(row_of_panels, columns, strict=True):
            here = rows[(rows.model == model) & (rows.pruner == pruner) & (rows.sparsity == sparsity)]
            if here.empty:
                axes.set_axis_off()
                continue
            uniform = here[here.search == "uniform"]
            highest = 1.1 * (uniform if len(uniform) else here).report_kl.max()
            for name, ran in here.groupby("search"):
                if is_closed[name]:
                    height = min(ran.report_kl.median(), highest)
                    handles[name] = axes.axhline(height, color="black", linestyle=dashes[name], linewidth=1)
                else:
                    style = {"marker": markers.get(name, "o"), "color": colours[name], "zorder": 3 + (name == OURS)}
                    heights = ran.report_kl.clip(upper=highest)
                    (handles[name],) = axes.plot(ran.n_tokens, heights, linestyle="", alpha=0.7, clip_on=False, **style)
            axes.set(xscale="log", xlim=(10_000, 7_000_000), ylim=(0, highest), title=f"{model}, {pruner}, {sparsity:.0%}")
            axes.grid(alpha=0.3)
    figure.supxlabel("tokens spent")
    figure.supylabel("report-split KL")
    order = [name for name in (*names, *dashes) if name in handles]
    figure.legend([handles[name] for name in order], order, fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Runs that differ in their searches alone have the same closed forms, which are kept once.
    arguments, read = read_study(parser, Path(__file__).parent, read_run, [*SEARCH, "seed"])
    rows = pd.DataFrame(read)
    lines = [*claims_table(rows), "", *without_table(rows), "", *searches_table(rows), ""]
    (arguments.output / "table.md").write_text("\n".join(lines))
    draw(rows, arguments.output / "kl.png")


if __name__ == "__main__":
    main()
