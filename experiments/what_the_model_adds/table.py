"""Reads the runs, pairs their searches by seed, and writes the table and the picture.

    python -m experiments.what_the_model_adds.table runs/what_the_model_adds

A run's folder is named MODEL_SPARSITY_ARM_SEED, where ARM is what its main search was; its controls are arms by their own
names. An arm is compared with the reference on the same seeds: the mean difference of report-split KL with its 95% interval by
Student's t. `results.jsonl` keeps every search, those of runs that are no longer there too.
"""

import argparse
import statistics
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from experiments.results import Row, read_study, searches
from selfprune.reports.comparisons.comparison import interval
from selfprune.reports.comparisons.finished_runs import FinishedRun
from selfprune.reports.markdown import table_lines

ASKED = ("calls", "replies", "valid", "repaired", "accepted", "prompt_tokens", "reply_tokens", "seconds", "has_winner")


def read_run(run: FinishedRun) -> list[Row]:
    """One row for every search of a finished run."""
    model, sparsity, arm, seed = run.folder.name.rsplit("_", 3)
    found = searches(run)
    uniform_kl = found["uniform"]["report_kl"] if "uniform" in found else None
    asked = run.report["language_model"]["searches"]
    return [
        {
            "model": model,
            "sparsity": float(sparsity),
            "arm": arm if search == "main" else search,
            "seed": int(seed),
            **row,
            "uniform_kl": uniform_kl,
            "language_model": {name: asked[search][name] for name in ASKED} if search in asked else {},
        }
        for search, row in found.items()
        if row["n_tokens"]
    ]


def paired(rows: list[Row], arm: str, reference: str) -> list[float]:
    """Per seed that both have, by how much the arm's KL lies above the reference's."""
    theirs = {row["seed"]: row["report_kl"] for row in rows if row["arm"] == reference}
    return [row["report_kl"] - theirs[row["seed"]] for row in rows if row["arm"] == arm and row["seed"] in theirs]


def to_table(rows: list[Row], reference: str) -> str:
    """Markdown, one line per model, sparsity and arm."""
    columns = [
        "model", "sparsity", "arm", "seeds", "tokens", "report KL, mean ± sd", "perplexity", f"minus `{reference}`, 95% interval",
        "valid replies", "its tokens", "its seconds", "its winners",
    ]  # fmt: skip
    lines = []
    for model, sparsity in sorted({(row["model"], row["sparsity"]) for row in rows}):
        here = [row for row in rows if (row["model"], row["sparsity"]) == (model, sparsity)]
        for arm in sorted({row["arm"] for row in here}, key=lambda arm: _mean(here, arm, "report_kl")):
            values = [row["report_kl"] for row in here if row["arm"] == arm]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            differences = [] if arm == reference else paired(here, arm, reference)
            difference = "{:+.4f} ± {:.4f}".format(*interval(differences)) if len(differences) > 1 else ""
            lines.append([
                model, f"{sparsity:.0%}", arm, str(len(values)), f"{_mean(here, arm, 'n_tokens'):,.0f}",
                f"{statistics.fmean(values):.4f}{spread}", f"{_mean(here, arm, 'perplexity'):.2f}", difference,
                *_told([row["language_model"] for row in here if row["arm"] == arm and row["language_model"]]),
            ])  # fmt: skip
    return "\n".join([*table_lines(columns, lines), ""])


def _told(asked: list[Row]) -> list[str]:
    """What the language model did in the runs that asked it: all valid of all replies, then means of a run, and winners."""
    if not asked:
        return [""] * 4
    sums = {name: sum(run[name] for run in asked) for name in asked[0]}
    n_tokens, seconds = (sums["prompt_tokens"] + sums["reply_tokens"]) / len(asked), sums["seconds"] / len(asked)
    valid, winners = f"{sums['valid']} of {sums['replies']}", f"{sums['has_winner']} of {len(asked)}"
    return [valid, f"{n_tokens:,.0f}", f"{seconds:.1f}", winners]


def draw(rows: list[Row], reference: str, path: Path) -> None:
    """Report-split KL per arm, a row of panels per model and a column per sparsity, one mark per run."""
    models, sparsities = (sorted({row[name] for row in rows}) for name in ("model", "sparsity"))
    figure = Figure(figsize=(4.0 * len(sparsities), 3.2 * len(models)), layout="constrained")
    panels = figure.subplots(len(models), len(sparsities), squeeze=False).flat
    for axes, panel in zip(panels, product(models, sparsities), strict=True):
        here = [row for row in rows if (row["model"], row["sparsity"]) == panel]
        if not here:
            axes.set_axis_off()
            continue
        arms = sorted({row["arm"] for row in here}, key=lambda arm: _mean(here, arm, "report_kl"))
        for place, arm in enumerate(arms):
            values = [row["report_kl"] for row in here if row["arm"] == arm]
            axes.plot(values, [place] * len(values), "o", alpha=0.6, color="C0" if arm == reference else "0.4")
        axes.axvline(next(row["uniform_kl"] for row in here if row["uniform_kl"]), color="C3", linestyle=":")
        axes.set(
            yticks=range(len(arms)),
            yticklabels=arms,
            xlabel="report-split KL",
            title=f"{panel[0]}, {panel[1]:.0%} (dotted: uniform)",
        )
        axes.set_xlim(left=0)
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=110)


def _mean(rows: list[Row], arm: str, column: str) -> float:
    return statistics.fmean(row[column] for row in rows if row["arm"] == arm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="self", help="the arm that others are compared with")
    arguments, rows = read_study(parser, Path(__file__).parent, read_run, ["model", "sparsity", "arm", "seed"])
    (arguments.output / "table.md").write_text(to_table(rows, arguments.reference))
    draw(rows, arguments.reference, arguments.output / "kl.png")


if __name__ == "__main__":
    main()
