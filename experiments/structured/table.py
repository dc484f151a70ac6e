"""Reads the runs of the study and writes its tables.

    python -m experiments.structured.table runs/structured

Every row of a finished run counts: its winner, its controls and its closed forms. Values are medians over seeds with the range.
`results.jsonl` keeps every row, those of runs that are no longer there too.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.results import Row, read_study, searches, spread
from selfprune.reports.comparisons.finished_runs import FinishedRun
from selfprune.reports.markdown import table_lines

CELL = ["model", "units", "sparsity"]
SEARCH = [*CELL, "pruner", "search", "max_tokens"]
OURS, DEPTH, OBS = "portfolio", "portfolio_depth", "obs"
CLOSED = ("uniform", "flap_global", "owl", "block_influence")
PUBLISHED = ("wanda_sp", "flap, bias_compensation", "coupled_taylor")
"""Pruners as published, with uniform or FLAP's own allocation; OWL's was not meant for them."""


def read_run(run: FinishedRun) -> list[Row]:
    """One row for the winner of a finished run, each of its controls and each of its closed forms."""
    report, methods = run.report, run.report["environment"]["overrides"]
    chosen = dict(item.split("=", 1) for item in methods if "=" in item)
    recovery = chosen.get("recovery", "none")
    pruner = chosen.get("pruner", OBS) + ("" if recovery == "none" else f", {recovery}")
    kinds = (
        "depth"
        if run.config["pruner.whole"] == "True"
        else "widths"
        if float(run.config["search.max_sparsity"]) < 1
        else "widths and depth"
    )
    if "+experiment=depth" in methods:
        chosen = {"proposer": DEPTH} | chosen
    main = "uniform" if "+experiment=structured_closed_forms" in methods else chosen.get("proposer", OURS)
    model = report["model"]
    of_winner = {"parameters": model["parameters"] / model["dense_parameters"], "megabytes": model["bytes"] / 1e6}
    of_winner |= {f"speed {one['workload'].split()[0]}": one["dense_seconds"] / one["seconds"] for one in report["speed"]}
    return [
        {
            "model": Path(run.config["model.path"]).name,
            "units": kinds,
            "pruner": pruner,
            "sparsity": float(run.config["budget.sparsity"]),
            "search": main if search == "main" else search,
            "max_tokens": int(run.config["search.max_tokens"]) if found["n_tokens"] and main != "uniform" else 0,
            "seed": int(run.seed),
            **found,
            **(of_winner if search == "main" else {}),
        }
        for search, found in searches(run).items()
    ]


def claims_table(rows: pd.DataFrame) -> list[str]:
    """One line per model and sparsity: ours beside the best published closed form and the best control."""
    header = ["model", "sparsity", "best published closed form", "KL", "ours, KL", "ratio", "best control at equal tokens", "KL"]
    lines = []
    for key, here in rows[rows.units == "widths and depth"].groupby(["model", "sparsity"]):
        published = here[here.pruner.isin(PUBLISHED) & here.search.isin(["uniform", "flap_global"])]
        ours = here[(here.pruner == OBS) & (here.search == OURS)]
        rivals = here[(here.pruner == OBS) & ~here.search.isin([OURS, *CLOSED])]
        if ours.empty or published.empty or rivals.empty:
            continue
        named = published.groupby(["pruner", "search"]).report_kl.median()
        least = ours[ours.max_tokens == ours.max_tokens.min()]
        control = rivals.groupby("search").report_kl.median()
        ratio = least.report_kl.median() / named.min()
        best = f"{named.idxmin()[0]}, {named.idxmin()[1]}"
        ends = [
            spread(least.report_kl),
            f"{ratio:.3f}",
            control.idxmin(),
            spread(rivals[rivals.search == control.idxmin()].report_kl),
        ]
        lines.append([key[0], f"{key[1]:.0%}", best, spread(published[_is(published, named.idxmin())].report_kl), *ends])
    return table_lines(header, lines)


def depth_table(rows: pd.DataFrame) -> list[str]:
    """One line per model and sparsity: depth alone, ours beside ShortGPT and a long search of EvoPress."""
    header = ["model", "sparsity", "ShortGPT", "EvoPress, tokens", "KL", "ours, tokens", "KL", "perplexity"]
    lines = []
    for key, here in rows[rows.units == "depth"].groupby(["model", "sparsity"]):
        ours, short = here[here.search == DEPTH], here[here.search == "block_influence"]
        long = here[(here.search == "evopress") & (here.max_tokens == here.max_tokens.max())]
        if ours.empty or short.empty or long.empty:
            continue
        of_long = [f"{long.n_tokens.median():,.0f}", spread(long.report_kl)]
        of_ours = [f"{ours.n_tokens.median():,.0f}", spread(ours.report_kl), spread(ours.perplexity)]
        lines.append([key[0], f"{key[1]:.0%}", spread(short.report_kl), *of_long, *of_ours])
    return table_lines(header, lines)


def sizes_table(rows: pd.DataFrame) -> list[str]:
    """One line per model, kind of units and sparsity: what the winners of ours hold, and how fast they are."""
    speeds = [column for column in rows.columns if column.startswith("speed ")]
    ours = rows[(rows.pruner == OBS) & (rows.search == rows.units.map(lambda units: DEPTH if units == "depth" else OURS))]
    header = [*CELL, "parameters left", "MB of weights", *(f"{name.removeprefix('speed ')}, times dense" for name in speeds)]
    lines = [
        [
            *_cell(key),
            f"{seeds.parameters.median():.1%}",
            f"{seeds.megabytes.median():.1f}",
            *(spread(seeds[name]) for name in speeds),
        ]
        for key, seeds in ours.groupby(CELL)
    ]
    return table_lines(header, lines)


def all_table(rows: pd.DataFrame) -> list[str]:
    """Every row of the study, the lowest report KL of a cell first."""
    lines = []
    for key, seeds in sorted(rows.groupby(SEARCH), key=lambda item: (*item[0][:3], item[1].report_kl.median())):
        spent = [f"{seeds.n_tokens.median():,.0f}", f"{seeds.seconds.median():,.0f}", str(len(seeds))]
        lines.append([*_cell(key), key[3], key[4], *spent, spread(seeds.report_kl), spread(seeds.perplexity)])
    return table_lines([*CELL, "pruner", "search", "tokens", "seconds", "seeds", "report KL", "perplexity"], lines)


def _is(rows: pd.DataFrame, key: Any) -> "pd.Series[bool]":
    return (rows.pruner == key[0]) & (rows.search == key[1])


def _cell(key: Any) -> list[str]:
    return [key[0], key[1], f"{key[2]:.0%}"]


def main() -> None:
    """Writes table.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments, found = read_study(parser, Path(__file__).parent, read_run, [*SEARCH, "seed"])
    rows = pd.DataFrame(found)
    titles = {
        "Against the best published closed form, and the best control at equal tokens": claims_table(rows),
        "Depth alone": depth_table(rows),
        "Size and speed of the winners": sizes_table(rows),
        "All rows": all_table(rows),
    }
    parts = [line for title, lines in titles.items() for line in (f"## {title}", "", *lines, "")]
    (arguments.output / "table.md").write_text("\n".join(["# Structured pruning", "", *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
