"""What the tables of studies share: the searches of finished runs, and a file of results to which machines and sessions add.

Run folders stay where they were made; `results.jsonl` of a study keeps one line per search.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from selfprune.allocations.report_file import read_report
from selfprune.reports.task_columns import mean_accuracy

Row = dict[str, Any]


def read_study(
    parser: argparse.ArgumentParser, output: Path, read_run: Callable[[Path, Row], list[Row]], key: Sequence[str]
) -> tuple[argparse.Namespace, list[Row]]:
    """The command line of a table, and every result of its study: those of the runs that it names, and those read before.

    Args:
        parser: knows the table's own options.
        output: the study's folder.
        read_run: the rows of a finished run, of its folder and what its `report.json` holds.
        key: the columns that tell results apart.

    Raises:
        SystemExit: with code 2 when a folder is missing, or when there is no result at all.
    """
    parser.add_argument("runs", type=_folder, help="folder of run folders")
    parser.add_argument("--output", type=_folder, default=output, help="folder of results.jsonl, the table and the picture")
    arguments = parser.parse_args()
    reports = {path.parent: read_report(path.parent) for path in sorted(arguments.runs.glob("*/report.json"))}
    read = [row for folder, report in reports.items() for row in read_run(folder, report)]
    rows = _merged(arguments.output / "results.jsonl", read, key)
    if not rows:
        parser.error(f"no folder in {arguments.runs} holds a report.json, and no result was read before; name a folder of runs")
    return arguments, rows


def searches(report: Row) -> dict[str, Row]:
    """Search -> its row of the report; the main one is called `main`, and closed forms count as searches that spend nothing."""
    names = {"winner": "main"}
    return {
        names.get(row["name"], row["name"]): {
            "n_tokens": row["n_tokens"],
            "seconds": row["seconds"],
            "report_kl": row["kl"],
            "perplexity": row["perplexity"],
            "accuracy": mean_accuracy(row["tasks"]),
        }
        for row in report["rows"]
        if row["name"] != "dense"
    }


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
