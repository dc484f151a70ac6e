"""What the tables of studies share: the searches of finished runs, and a file of results to which machines and sessions add.

Run folders stay where they were made; `results.jsonl` of a study keeps one line per search.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

Row = dict[str, Any]


def finished_runs(folder: Path) -> list[Path]:
    """The run folders below a folder that hold a report."""
    return [path.parent for path in sorted(folder.glob("*/report.json"))]


def searches(folder: Path) -> dict[str, Row]:
    """Search -> its row of the report; the main one is called `main`, and closed forms count as searches that spend nothing."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    names = {"winner": "main"}
    return {
        names.get(row["name"], row["name"]): {
            "n_tokens": row["n_tokens"],
            "seconds": row["seconds"],
            "report_kl": row["kl"],
            "perplexity": row["perplexity"],
            "accuracy": _mean_accuracy(row["tasks"]),
        }
        for row in report["rows"]
        if row["name"] != "dense"
    }


def merged(path: Path, rows: Iterable[Row], key: Sequence[str]) -> list[Row]:
    """The rows of a file and these, of which later ones take the place of those with the same key; the file holds them after."""
    known = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    by_key = {tuple(row[name] for name in key): row for row in [*known, *rows]}
    found = [by_key[which] for which in sorted(by_key, key=lambda which: [str(part) for part in which])]
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return found


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval by Student's t; of two differences or more."""
    n = len(differences)
    return statistics.fmean(differences), float(student.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5


def _mean_accuracy(tasks: dict[str, dict[str, Any]]) -> float | None:
    accuracies = [metrics["acc"] for metrics in tasks.values() if "acc" in metrics]
    return statistics.fmean(accuracies) if accuracies else None
