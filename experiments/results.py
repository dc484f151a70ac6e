"""What the tables of studies share: the searches of finished runs, and a file of results to which machines and sessions add.

Runs are found and read as by `selfprune compare`, and stay where they were made; `results.jsonl` of a study keeps one line per
search.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from selfprune.reports.comparisons.comparison import DENSE, WINNER, numbers
from selfprune.reports.comparisons.finished_runs import FinishedRun, find_runs

Row = dict[str, Any]
COLUMNS = {"tokens": "n_tokens", "seconds": "seconds", "KL": "report_kl", "perplexity": "perplexity", "accuracy": "accuracy"}
"""Column of a comparison -> its name in `results.jsonl`."""


def read_study(
    parser: argparse.ArgumentParser, output: Path, read_run: Callable[[FinishedRun], list[Row]], key: Sequence[str]
) -> tuple[argparse.Namespace, list[Row]]:
    """The command line of a table, and every result of its study: those of the runs that it names, and those read before.

    Args:
        parser: knows the table's own options.
        output: the study's folder.
        read_run: the rows of a finished run.
        key: the columns that tell results apart.

    Raises:
        SystemExit: with code 2 when a folder is missing, or when there is no result at all.
    """
    parser.add_argument("runs", type=_folder, help="folder of run folders")
    parser.add_argument("--output", type=_folder, default=output, help="folder of results.jsonl, the table and the picture")
    arguments = parser.parse_args()
    runs, _ = find_runs([arguments.runs]) if any(arguments.runs.rglob("report.json")) else ([], [])
    read = [row for run in sorted(runs, key=lambda run: run.folder) for row in read_run(run)]
    rows = _merged(arguments.output / "results.jsonl", read, key)
    if not rows:
        parser.error(f"no folder in {arguments.runs} holds a report.json, and no result was read before; name a folder of runs")
    return arguments, rows


def searches(run: FinishedRun) -> dict[str, Row]:
    """Search -> its row of the report; the main one is called `main`, and closed forms count as searches that spend nothing."""
    found = {row["name"]: numbers(row, run.report) for row in run.report["rows"] if row["name"] != DENSE}
    return {
        "main" if search == WINNER else search: {name: measured.get(column) for column, name in COLUMNS.items()}
        for search, measured in found.items()
    }


def spread(values: "pd.Series[float]", digits: int = 4) -> str:
    """The median of what was measured, and the range where there are several."""
    known = values.dropna()
    if known.empty:
        return "–"
    low, middle, high = (f"{value:.{digits}g}" for value in (known.min(), known.median(), known.max()))
    return middle if low == high else f"{middle} ({low}–{high})"


def _merged(path: Path, rows: Iterable[Row], key: Sequence[str]) -> list[Row]:
    """The rows of a file and these, of which later ones take the place of those with the same key; the file holds them after."""
    known = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    by_key = {tuple(row[name] for name in key): row for row in [*known, *rows]}
    found = [by_key[which] for which in sorted(by_key, key=lambda which: [str(part) for part in which])]
    if found:
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return found


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}; name one that exists")
    return path
