"""What lm-eval measured, as columns of the report's table and as one number per row."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

TaskMetrics = Mapping[str, Mapping[str, Any]]
"""Task or group -> its metrics, as of `Harness.evaluate`."""


def task_columns(rows: Sequence[TaskMetrics]) -> dict[str, list[str]]:
    """Title -> one cell per row: the primary metric of each task; a group stands for its members where it has a metric.

    Args:
        rows: of one report, so that all have the same tasks.
    """
    shown = [{*metrics["members"]} for metrics in rows[0].values() if "members" in metrics and primary_metric(metrics) in metrics]
    columns = {}
    for task, metrics in rows[0].items():
        primary = primary_metric(metrics)
        if primary in metrics and not any({*metrics.get("members", [task])} < group or task in group for group in shown):
            arrow = " ↓" if metrics.get("higher_is_better") is False else ""
            columns[f"{_short(task)} {_spelled(primary)}{arrow}"] = _cells([row[task] for row in rows], primary)
    return columns


def mean_accuracy(tasks: TaskMetrics) -> float | None:
    """The mean of a row's accuracies, as a fraction; None where no task has one.

    Args:
        tasks: of the row; those whose primary metric is no share of right answers do not count, nor do groups, whose members do.
    """
    leaves = [metrics for metrics in tasks.values() if "members" not in metrics]
    accuracies = [metrics[primary_metric(metrics)] for metrics in leaves if metrics.get("is_accuracy", "acc" in metrics)]
    return statistics.fmean(accuracies) if accuracies else None


def task_lines(harness: Mapping[str, Any]) -> list[str]:
    """How the tasks were asked, for the report's page; nothing where there were none.

    Args:
        harness: as of `Harness.describe`.
    """
    if not harness["tasks"]:
        return []
    start = " ".join(harness["prompt_start"])
    begin = f"begin with `{start}`, as the tokenizer begins a text" if start else "begin with no token of the tokenizer's own"
    asked = ", ".join(
        f"{name} (version {task['version']}, {task['num_fewshot']} solved examples)" for name, task in harness["tasks"].items()
    )
    return [f"Prompts of lm-eval {harness['lm_eval']} use no chat template and {begin}. Tasks: {asked}."]


def primary_metric(metrics: Mapping[str, Any]) -> str:
    """The metric that stands for a task; reports that were written before tasks had one have `acc`."""
    return str(metrics.get("primary", "acc") or "")


def standard_error(metrics: Mapping[str, Any]) -> float | None:
    """That of the primary metric; None where lm-eval has none, as for a single document."""
    name, comma, filter_name = primary_metric(metrics).partition(",")
    error: float | None = metrics.get(f"{name}_stderr{comma}{filter_name}")
    return error


def _spelled(primary: str) -> str:
    """`exact_match,strict-match` with a space, where a narrow table can break it."""
    name, comma, filter_name = primary.partition(",")
    return f"{name} ({filter_name})" if comma else name


def _short(task: str) -> str:
    return task.removeprefix("selfprune_").removesuffix("_report")


def _cells(found: Sequence[Mapping[str, Any]], primary: str) -> list[str]:
    is_share = found[0].get("higher_is_better", True) and not any(abs(metrics[primary]) > 1 for metrics in found)
    return [f"{_number(metrics[primary], is_share)} ± {_number(standard_error(metrics), is_share)}" for metrics in found]


def _number(value: float | None, is_share: bool) -> str:
    if not isinstance(value, float | int):
        return "–"
    return f"{100 * value:.1f}" if is_share else f"{value:.4g}"
