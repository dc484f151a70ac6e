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

from selfprune.allocations.candidate import best
from selfprune.allocations.pareto import nondominated
from selfprune.errors import ConfigError
from selfprune.language_models.calls import Call, read_calls
from selfprune.reports.checkpoint_sentences import checkpoint_lines, size_record
from selfprune.reports.conclusions import (
    compare_with_winner,
    contest_record,
    contest_sentence,
    cost_sentence,
    further_sentences,
    verdict_sentence,
)
from selfprune.reports.dialogues import sample_dialogues
from selfprune.reports.insight.layers import layer_record, moved_by_training
from selfprune.reports.insight.seen_moves import read_moves
from selfprune.reports.ledger import count_by_proposer, count_by_search
from selfprune.reports.markdown import front_lines, front_records, language_model_lines, table_lines, warning_lines
from selfprune.reports.page.drawing import PAGE, draw
from selfprune.reports.pictures import WHY_IT_RISES
from selfprune.reports.report_table import ledger_cells, table_cells, table_csv, table_latex
from selfprune.reports.results import Results, Spent
from selfprune.reports.task_columns import standard_error, task_lines
from selfprune.storage.environment import read_environment
from selfprune.storage.whole_files import write_whole
from selfprune.timing.resources import Resources


def write_report(folder: Path, results: Results, harness: dict[str, Any], extended: Sequence[str] = ()) -> dict[str, Any]:
    """Writes pictures, `report.html`, `report.md` and last `report.json`, whose presence says that the run is complete.

    Args:
        folder: the run folder.
        results: what to report.
        harness: how lm-eval's tasks were asked, as of `Harness.describe`.
        extended: overrides by which the run was extended, named after those that it was begun with.

    Returns:
        the content of `report.json`.

    Raises:
        ConfigError: when a folder has the name of one of the files.
        SelfpruneError: when a file cannot be written.
    """
    report = build_report(results, read_calls(folder / "language_model_calls.jsonl", results.language_model.n_calls))
    environment = read_environment(folder)
    overrides = [*environment["overrides"], *extended]
    report["model"] = size_record(folder / "model", results.n_parameters, results.kept_per_token)
    report["speed"] = results.speed
    main, moves = [c for c in results.candidates if c.search == "main"], read_moves(folder / "evaluations.jsonl")
    numbers = {**results.block_numbers, **moved_by_training(report["rows"])}
    report["layers"] = layer_record(results.grid, results.winner.allocation, numbers, results.sensitivities, moves, main)
    report["environment"] = {**environment, "overrides": overrides, "lm_eval_tasks": harness}
    files = {
        "table.csv": table_csv(report),
        "table.tex": table_latex(report),
        "report.md": to_markdown(report),
        "report.json": json.dumps(report, indent=2) + "\n",
    }
    if taken := [name for name in files if (folder / name).is_dir()]:  # told before any other of them is written anew
        raise ConfigError(f"{folder / taken[0]} must be a file of the report, but is a folder; move it away, and resume the run")
    draw(folder, results, report, moves)
    for name, content in files.items():
        write_whole(folder / name, content)
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
    said = "\n".join([report["verdict"]["sentence"], *further_sentences(report["rows"]), cost_sentence(report)])
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    said = f"Options: {_options(report)}\nReport:  {folder / PAGE}, {folder / 'report.md'}\nModel:   {folder / 'model'}"
    console.print(said, highlight=False, markup=False)


def build_report(results: Results, calls: Sequence[Call]) -> dict[str, Any]:
    """The dictionary of `report.json`, without the environment.

    Args:
        results: what to report.
        calls: the recorded calls of the language model.
    """
    main = [c for c in results.candidates if c.search == "main"]
    costs = {"winner": results.spent["main"]} | {name: spent for name, spent in results.spent.items() if name != "main"}
    front = front_records(nondominated(main))
    asked = _language_model_record(results, calls)
    rows = []
    for row in results.rows:
        cost = costs.get(row["name"], Spent(0, 0.0))
        tasks = {task: {**metrics, "stderr": standard_error(metrics)} for task, metrics in row["tasks"].items()}
        known = {name: value for name, value in row.items() if name != "window_kl"}
        totals = asked["searches"].get("main" if row["name"] == "winner" else row["name"], {})
        n_asked = totals.get("prompt_tokens", 0) + totals.get("reply_tokens", 0)
        spent = {"n_tokens": cost.n_tokens, "seconds": round(cost.seconds, 3), "language_model_tokens": n_asked}
        rows.append({**known, "tasks": tasks, **spent})
    sparsities = results.grid.sparsities(results.winner.allocation)
    return {
        "rows": rows,
        "verdict": _verdict_record(results),
        "budget": {"measure": results.measure.name, "sparsity": results.sparsity},
        "search": {
            "n_candidates": sum(not c.is_champion_again for c in main),
            "ending": results.spent["main"].ending,
            "n_tokens": results.spent["main"].n_tokens,
            "seconds": round(results.spent["main"].seconds, 3),
            "n_proposal_tokens": sum(c.proposal.proposal_tokens for c in main),
            "winner": {
                "id": results.winner.id,
                "proposer": results.winner.proposal.proposer,
                "score": results.winner.score,
                "sparsities": {unit: round(share, 6) for unit, share in sparsities.items()},
            },
            "finalists": contest_record(results.contest),
            "by_proposer": count_by_proposer(main),
            **({"pareto_front": front} if front else {}),
        },
        "language_model": asked,
        "splits": results.hashes,
        "window_start": results.window_start,
        "calibration": results.calibration,
        "resources": {"expected": results.expected.as_dict(), "measured": results.measured.as_dict()},
        "warnings": list(results.warnings),
    }


def _verdict_record(results: Results) -> dict[str, Any]:
    """Whether the winner beat the yardsticks and controls, in numbers and in a sentence."""
    comparisons = compare_with_winner(results.rows)
    winner = next(row for row in results.rows if row["name"] == "winner")
    sentence = verdict_sentence(winner["kl"], comparisons, len(winner.get("window_kl", [])))
    return {"sentence": sentence, "comparisons": comparisons}


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


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    header, cells = table_cells(report)
    environment = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    splits = ", ".join(f"{split} `{digest[:12]}`" for split, digest in report["splits"].items())
    lines = [
        "# selfprune report",
        "",
        "KL (nats per token, against the dense model) and perplexity are measured on the report split, which the search never",
        "saw. lm-eval's metrics are shown ± one standard error, shares in percent; ↓ marks those that are better when lower, and",
        "report.json holds all of them. Tokens and seconds are those that the search for this row spent on evaluation, LM tokens",
        "its prompts and replies. The table is also in table.csv, with all digits, and in table.tex.",
        "",
        *table_lines(header, cells),
        "",
        *warning_lines(report["warnings"]),
        report["verdict"]["sentence"],
        "",
        contest_sentence(report["search"]["winner"], report["search"]["finalists"]),
        "",
        *checkpoint_lines(report),
        *(f"{sentence}\n" for sentence in further_sentences(report["rows"])),
        cost_sentence(report),
        "",
        "![Sparsity per block and module type](sparsity.png)",
        "",
        *(["![Heads and channels that each block keeps](widths.png)", ""] if "cached_per_token" in report["model"] else []),
        "![The incumbents' scores against tokens spent](progress.png)",
        "",
        f"{WHY_IT_RISES} Lower is better.",
        "",
        *front_lines(report["search"].get("pareto_front", [])),
        "## Who proposed what",
        "",
        "`won` counts the candidates that became the incumbent, `gain` is the fall of the score that they brought on the windows",
        "of their heat, and `credit` is the gain per million tokens, those of gradients included.",
        "",
        *table_lines(*ledger_cells(report["search"]["by_proposer"])),
        "",
        *language_model_lines(report["language_model"]),
        "## Environment",
        "",
        f"Options: `{_options(report)}`.",
        f"Python {environment['python']}, {versions}.",
        f"Splits: {splits}. {_window_start(report)}",
        *task_lines(environment["lm_eval_tasks"]),
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
