"""The table of a report, as text for pages and terminals, as CSV with all digits, and as LaTeX."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from selfprune.reports.task_columns import standard_error, task_columns

SAVED = {"PARAMETERS": "parameters saved", "FLOPS": "FLOPs saved", "MEMORY": "memory saved", "LATENCY": "latency saved"}
"""What a budget measures, other than the weights whose sparsity is always shown -> title of its column."""
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↓": r"$\downarrow$", "–": "--",
}  # fmt: skip


def table_cells(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison, as text.

    Args:
        report: `report.json`; one of an earlier version does without what that did not record.
    """
    rows = report["rows"]
    saved = SAVED.get(report.get("budget", {}).get("measure", ""))
    is_trained = any("training" in row for row in rows)
    has_calls = any(row.get("language_model_tokens") for row in rows)
    columns = {
        "": [row["name"] for row in rows],
        "sparsity": [f"{row['sparsity']:.2%}" for row in rows],
        **({saved: [f"{row['saved']:.2%}" for row in rows]} if saved else {}),
        "KL": [f"{max(row['kl'], 0.0):.4f}" for row in rows],
        "perplexity": [f"{row['perplexity']:.3f}" for row in rows],
        **task_columns([row["tasks"] for row in rows]),
        "tokens": [f"{row['n_tokens']:,}" for row in rows],
        "seconds": [f"{row['seconds']:.0f}" for row in rows],
        **(
            {"trained on": [f"{row['training']['n_tokens']:,}" if "training" in row else "0" for row in rows]}
            if is_trained
            else {}
        ),
        **({"LM tokens": [f"{row['language_model_tokens']:,}" for row in rows]} if has_calls else {}),
    }
    return list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)]


def ledger_cells(by_proposer: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what every proposer proposed, cost and gained, as text."""
    counted = ["proposed", "complete", "stopped", "failed", "n_tokens", "won"]
    rows = [
        [name, *(f"{ours[column]:,}" for column in counted), f"{ours['gain']:.3g}", f"{ours['gain_per_million_tokens']:.3g}"]
        for name, ours in by_proposer.items()
    ]
    return ["", *counted, "gain", "credit"], rows


def table_csv(report: dict[str, Any]) -> str:
    """The comparison with all digits, shares as fractions; every task with its primary metric and the standard error of that."""
    text = io.StringIO()
    lines = [_csv_line(row) for row in report["rows"]]
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_line(row: dict[str, Any]) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for task, metrics in row["tasks"].items():
        if primary := metrics.get("primary"):
            tasks |= {f"{task} {primary}": metrics[primary], f"{task} {primary} stderr": standard_error(metrics)}
    numbers = {name: row[name] for name in ("name", "sparsity", "saved", "kl", "perplexity")}
    return numbers | tasks | {name: row[name] for name in ("n_tokens", "seconds", "language_model_tokens")}


def table_latex(report: dict[str, Any]) -> str:
    """The comparison as a `tabular` of the package booktabs, the winner's line in bold."""
    header, rows = table_cells(report)
    return latex(header, rows, bold=[row[0] == "winner" for row in rows])


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[bool], n_names: int = 1) -> str:
    """A `tabular` of the package booktabs.

    Args:
        header: titles.
        rows: cells.
        bold: which rows are printed so.
        n_names: first columns that stand to the left.
    """
    body = [
        _latex_line([f"\\textbf{{{_escaped(c)}}}" if is_bold else _escaped(c) for c in row])
        for row, is_bold in zip(rows, bold, strict=True)
    ]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{'l' * n_names}{'r' * (len(header) - n_names)}}}",
            r"\toprule",
            _latex_line([_escaped(cell) for cell in header]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_line(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
