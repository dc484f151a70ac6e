"""What a reader looks at: `report.json`, `report.md` and its pictures.

`report_schema.json` beside this file is the JSON schema of `report.json`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from selfprune.allocation import Allocation
from selfprune.candidate import best
from selfprune.dialogues import sample_dialogues
from selfprune.journal import write_whole
from selfprune.language_models.calls import Call, read_calls
from selfprune.ledger import count_by_proposer, count_by_search
from selfprune.markdown import front_lines, front_records, language_model_lines, table_lines, warning_lines
from selfprune.pareto import best_rivals, rivals
from selfprune.pictures import draw_front, draw_progress, draw_sparsities
from selfprune.resources import Resources
from selfprune.results import Results, Spent
from selfprune.task_columns import standard_error, task_columns
from selfprune.tracking import read_environment


def write_report(folder: Path, results: Results, versions: dict[str, Any]) -> dict[str, Any]:
    """Writes pictures, `report.md` and last `report.json`, whose presence says that the run is complete.

    Args:
        folder: the run folder.
        results: what to report.
        versions: lm-eval's version and those of its tasks.

    Returns:
        the content of `report.json`.
    """
    report = build_report(results, read_calls(folder / "language_model_calls.jsonl", results.language_model.n_calls))
    report["environment"] = dict(read_environment(folder)) | {"lm_eval_tasks": versions}
    draw_sparsities(folder / "sparsity.png", _pictured(results), results.grid)
    main = [c for c in results.candidates if c.search == "main"]
    n_scored = sum(c.n_tokens for c in main)
    draw_progress(folder / "progress.png", results.candidates, {"main": results.spent["main"].n_tokens - n_scored})
    if field := rivals(main):
        draw_front(folder / "pareto.png", field, best_rivals(main), results.winner.allocation)
    write_whole(folder / "report.md", to_markdown(report))
    write_whole(folder / "report.json", json.dumps(report, indent=2) + "\n")
    return report


def print_table(report: dict[str, Any], folder: Path) -> None:
    """Shows the comparison on the standard output, and where the rest is."""
    header, cells = table_cells(report)
    table = Table(title="Report split")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in cells:
        table.add_row(*row, style="bold" if row[0] == "winner" else None)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    said = f"Options: {_options(report)}\nReport:  {folder / 'report.md'}\nModel:   {folder / 'model'}"
    console.print(said, highlight=False, markup=False)


def build_report(results: Results, calls: Sequence[Call]) -> dict[str, Any]:
    """The dictionary of `report.json`, without the environment.

    Args:
        results: what to report.
        calls: the recorded calls of the language model.
    """
    main = [c for c in results.candidates if c.search == "main"]
    costs = {"winner": results.spent["main"]} | {name: spent for name, spent in results.spent.items() if name != "main"}
    front = front_records(best_rivals(main))
    rows = []
    for row in results.rows:
        cost = costs.get(row["name"], Spent(0, 0.0))
        tasks = {task: {**metrics, "stderr": standard_error(metrics)} for task, metrics in row["tasks"].items()}
        rows.append({**row, "tasks": tasks, "n_tokens": cost.n_tokens, "seconds": round(cost.seconds, 3)})
    return {
        "rows": rows,
        "search": {
            "n_candidates": len(main),
            "n_tokens": results.spent["main"].n_tokens,
            "seconds": round(results.spent["main"].seconds, 3),
            "winner": {"id": results.winner.id, "proposer": results.winner.proposal.proposer, "score": results.winner.score},
            "by_proposer": count_by_proposer(main),
            **({"pareto_front": front} if front else {}),
        },
        "language_model": _language_model_record(results, calls),
        "splits": results.hashes,
        "window_start": results.window_start,
        "calibration": results.calibration,
        "resources": {"expected": results.expected.as_dict(), "measured": results.measured.as_dict()},
        "warnings": list(results.warnings),
    }


def _language_model_record(results: Results, calls: Sequence[Call]) -> dict[str, Any]:
    """Totals of all calls, what came of them in every search that asked, and three of them to read."""
    asked, candidates = results.language_model, results.candidates
    leaders = {name: best([c for c in candidates if c.search == name]) for name in results.spent if name != "main"}
    winners = {"main": results.winner, **{name: found[0] for name, found in leaders.items() if found}}
    return {
        "calls": asked.n_calls,
        "prompt_tokens": asked.n_prompt_tokens,
        "reply_tokens": asked.n_reply_tokens,
        "seconds": round(asked.seconds, 3),
        "searches": count_by_search(calls, candidates, winners),
        "dialogues": sample_dialogues(calls, candidates),
    }


def _pictured(results: Results) -> dict[str, Allocation]:
    """OWL's allocation, where it was scored, beside the winner's."""
    owl = [c.allocation for c in results.candidates if c.proposal.proposer == "owl" and c.proposal.allocation is not None]
    return {**({"owl": owl[0]} if owl else {}), "winner": results.winner.allocation}


def table_cells(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison, as text."""
    columns = task_columns([row["tasks"] for row in report["rows"]])
    header = ["", "sparsity", "KL", "perplexity", *columns, "tokens", "seconds"]
    cells = []
    for i, row in enumerate(report["rows"]):
        measured = [f"{row['sparsity']:.2%}", f"{max(row['kl'], 0.0):.4f}", f"{row['perplexity']:.3f}"]
        of_tasks = [column[i] for column in columns.values()]
        cells.append([row["name"], *measured, *of_tasks, f"{row['n_tokens']:,}", f"{row['seconds']:.0f}"])
    return header, cells


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    header, cells = table_cells(report)
    winner, environment = report["search"]["winner"], report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    splits = ", ".join(f"{split} `{digest[:12]}`" for split, digest in report["splits"].items())
    lines = [
        "# selfprune report",
        "",
        "KL (nats per token, against the dense model) and perplexity are measured on the report split, which the search never",
        "saw. lm-eval's metrics are shown ± one standard error, shares in percent; ↓ marks those that are better when lower, and",
        "report.json holds all of them. Tokens and seconds are those that the search for this row spent on evaluation.",
        "",
        *table_lines(header, cells),
        "",
        *warning_lines(report["warnings"]),
        f"The winner is candidate {winner['id']}, proposed by `{winner['proposer']}`.",
        "",
        "![Sparsity per block and module type](sparsity.png)",
        "",
        "![Best score against tokens spent](progress.png)",
        "",
        *front_lines(report["search"].get("pareto_front", [])),
        "## Who proposed what",
        "",
        "`won` counts the candidates that became the incumbent, `gain` is the fall of the score that they brought on the windows",
        "of their heat, and `credit` is the gain per million tokens, those of gradients included.",
        "",
        *_ledger_table(report["search"]["by_proposer"]),
        "",
        *language_model_lines(report["language_model"]),
        "## Environment",
        "",
        f"Options: `{_options(report)}`.",
        f"Python {environment['python']}, {versions}.",
        f"Splits: {splits}. {_window_start(report)}",
        *(f"Resources {when}: {Resources(**numbers)}." for when, numbers in report["resources"].items()),
        "",
    ]
    return "\n".join(lines)


def _window_start(report: dict[str, Any]) -> str:
    start = " ".join(report["window_start"])
    return (
        f"Every window begins with `{start}`, which is not scored." if start else "Windows are as they were cut from the texts."
    )


def _options(report: dict[str, Any]) -> str:
    return " ".join(report["environment"]["overrides"]) or "all by default"


def _ledger_table(by_proposer: dict[str, dict[str, float]]) -> list[str]:
    counted = ["proposed", "complete", "stopped", "failed", "n_tokens", "won"]
    rows = [
        [name, *(f"{ours[column]:,}" for column in counted), f"{ours['gain']:.3g}", f"{ours['gain_per_million_tokens']:.3g}"]
        for name, ours in by_proposer.items()
    ]
    header = ["", *counted, "gain", "credit"]
    return table_lines(header, rows)
