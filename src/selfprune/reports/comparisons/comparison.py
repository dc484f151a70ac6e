"""Finished runs side by side: grouped by what differs, the mean over seeds with its spread, and paired differences.

Runs belong to one group when their configs differ in the seed alone. Only rows that were measured on one report split are ever
averaged or subtracted. Several runs of one config and seed are one measurement, of which the newest counts.
"""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from selfprune.errors import ConfigError
from selfprune.reports.comparisons.finished_runs import METHODS, FinishedRun, differing_keys
from selfprune.reports.task_columns import mean_accuracy

DENSE, WINNER = "dense", "winner"
FORMATS = {"sparsity": "{:.2%}", "accuracy": "{:.2%}", "tokens": "{:,.0f}", "seconds": "{:,.0f}", "parameters": "{:,.0f}"}
"""Column -> how it is written; others with four digits."""
ROUNDING = 1e-7
"""What a mean below counts as zero, as the KL of the dense model to itself."""
MOVED = "unit sparsity between seeds"
"""How far the winner's allocation moves when its calibration and search windows are others."""
COLUMNS = ("sparsity", "KL", "perplexity", "accuracy", "tokens", "seconds", "parameters")
Group = tuple[str, ...]
"""The values of the keys that differ."""


@dataclass
class Line:
    """One row of the comparison: an allocation of a group's reports, over the seeds.

    Attributes:
        group: of its runs.
        name: of the row in their reports.
        split: of their reports.
        numbers: seed -> column -> value; a column that was not measured is missing.
        allocations: seed -> unit -> its sparsity; of winners alone.
    """

    group: Group
    name: str
    split: str
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    allocations: dict[str, dict[str, float]] = field(default_factory=dict)

    def values(self, column: str) -> list[float]:
        """A column over the seeds."""
        return [found[column] for _, found in sorted(self.numbers.items()) if column in found]

    def moved(self) -> float | None:
        """By how much the sparsity of a unit differs between two seeds, on average over both; None where there are not two."""
        pairs = [(one, other) for one, other in combinations(self.allocations.values(), 2) if one and one.keys() == other.keys()]
        if not pairs:
            return None
        return statistics.fmean(abs(one[unit] - other[unit]) for one, other in pairs for unit in one)


@dataclass(frozen=True)
class Comparison:
    """Runs in one table.

    Attributes:
        keys: what groups differ by.
        lines: the rows, those of a group together.
        notes: what a reader of the table must know.
    """

    keys: list[str]
    lines: list[Line]
    notes: list[str]

    @property
    def columns(self) -> list[str]:
        """What was measured."""
        return [column for column in COLUMNS if any(line.values(column) for line in self.lines)]

    def cells(self, against: Sequence[Line] = ()) -> tuple[list[str], list[list[str]]]:
        """Header and rows as text.

        Args:
            against: for every line, the one from which its KL is subtracted seed by seed; no such column when empty.
        """
        moved = [line.moved() for line in self.lines]
        is_moved = any(value is not None for value in moved)
        header = [
            *self.keys,
            "",
            "seeds",
            *self.columns,
            *([MOVED] if is_moved else []),
            *(["KL less chosen"] if against else []),
        ]
        rows = []
        for i, line in enumerate(self.lines):
            measured = [spread(line.values(column), FORMATS.get(column, "{:.4g}")) for column in self.columns]
            paired = [difference(line, against[i])] if against else []
            between = ["" if (value := moved[i]) is None else f"{value:.2%}"] if is_moved else []
            rows.append([*line.group, line.name, str(len(line.numbers)), *measured, *between, *paired])
        return header, rows

    def csv(self) -> str:
        """Every seed of every line, with all digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.keys, "name", "seed", "report split", *self.columns])
        for line in self.lines:
            for seed, numbers in sorted(line.numbers.items()):
                writer.writerow([*line.group, line.name, seed, line.split, *(numbers.get(column, "") for column in self.columns)])
        return text.getvalue()

    def chosen(self, wanted: str) -> list[Line]:
        """For every line the one that a choice means: of its own group, or of the group that the choice names.

        A line of all groups, as of the dense model, is compared with itself.

        Args:
            wanted: name of a row, and behind commas what its group is to have, as in `winner,pruner=Wanda`.

        Raises:
            ConfigError: when there is no such line.
        """
        name, *conditions = wanted.split(",")
        named = dict(condition.partition("=")[::2] for condition in conditions)
        if unknown := [key for key in named if key not in self.keys]:
            raise ConfigError(f"--against names {unknown[0]}, but the runs differ by {', '.join(self.keys) or 'nothing'}")
        found = []
        for line in self.lines:
            if self.keys and not any(line.group):
                found.append(line)
                continue
            asked = dict(zip(self.keys, line.group, strict=True)) | named
            fitting = [
                other
                for other in self.lines
                if other.name == name and other.group == tuple(asked.values()) and other.split == line.split
            ]
            if not fitting:
                there = ", ".join(dict.fromkeys(other.name for other in self.lines))
                where = ", ".join(f"{key}={value}" for key, value in asked.items())
                raise ConfigError(f"--against {wanted} names no row for {where or 'these runs'}; the rows are {there}")
            found.append(fitting[0])
        return found


def compare(runs: Sequence[FinishedRun], unfinished: Sequence[Path] = ()) -> Comparison:
    """Groups runs and puts their rows side by side.

    Args:
        runs: which.
        unfinished: folders of runs that are left out, which is noted.
    """
    keys = differing_keys(runs)
    lines: dict[tuple[Group, str, str], Line] = {}
    dense_is_one = all(len(values) == 1 for values in _dense_values(runs).values())
    for run in runs:
        group = tuple(run.config.get(key, "") for key in keys)
        for row in run.report["rows"]:
            of_all = row["name"] == DENSE and dense_is_one
            key = (tuple("" for _ in keys) if of_all else group, row["name"], run.split)
            line = lines.setdefault(key, Line(*key))
            line.numbers[run.seed] = numbers(row, run.report)
            if row["name"] == WINNER:
                line.allocations[run.seed] = run.report["search"]["winner"].get("sparsities", {})
    splits = list(dict.fromkeys(run.split for run in runs))
    notes = []
    if len(splits) > 1:
        counts = Counter(run.split for run in runs)
        told = ", ".join(f"{split[:8] or 'an unknown one'} ({counts[split]} runs)" for split in splits)
        notes.append(f"The runs were measured on {len(splits)} different report splits, {told}: compare only lines of one.")
    if unfinished:
        notes.append(f"{len(unfinished)} runs are not finished and left out: {', '.join(map(str, unfinished[:5]))}")
    shown = [key.removeprefix(METHODS) for key in keys]
    ordered = sorted(lines.values(), key=lambda line: [line.split, *map(_ordering, line.group)])
    if len(splits) > 1:
        shown = ["report split", *shown]
        ordered = [replace(line, group=(line.split[:8], *line.group)) for line in ordered]
    return Comparison(shown, ordered, notes)


def spread(values: Sequence[float], form: str = "{:.4g}") -> str:
    """The mean of some values, and where there are several their standard deviation; empty where there are none."""
    if not values:
        return ""
    mean = form.format(statistics.fmean(values) if max(map(abs, values)) > ROUNDING else 0.0)
    if len(values) < 2 or len(set(values)) == 1:
        return mean
    return f"{mean} ± {form.replace('.4g', '.2g').format(statistics.stdev(values))}"


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval by Student's t; of two differences or more."""
    n = len(differences)
    return statistics.fmean(differences), float(student.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5


def difference(line: Line, chosen: Line) -> str:
    """The KL of a line less that of another, over the seeds that both have, with its 95% interval where there are several."""
    if line is chosen:
        return ""
    shared = sorted(line.numbers.keys() & chosen.numbers.keys())
    differences = [line.numbers[seed]["KL"] - chosen.numbers[seed]["KL"] for seed in shared]
    if len(differences) < 2:
        return f"{differences[0]:+.4f}" if differences else ""
    mean, half = interval(differences)
    return f"{mean:+.4f} ± {half:.2g}"


def numbers(row: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, float]:
    """What a report measured of one of its rows: column -> value; a column that was not measured is missing."""
    accuracy = mean_accuracy(row["tasks"])
    return {
        "sparsity": row["sparsity"],
        "KL": max(row["kl"], 0.0),
        "perplexity": row["perplexity"],
        **({} if accuracy is None else {"accuracy": accuracy}),
        "tokens": row["n_tokens"],
        "seconds": row["seconds"],
        **({"parameters": report["model"]["parameters"]} if row["name"] == WINNER and "model" in report else {}),
        **({"parameters": report["model"]["dense_parameters"]} if row["name"] == DENSE and "model" in report else {}),
    }


def _dense_values(runs: Sequence[FinishedRun]) -> dict[str, set[float]]:
    """Report split -> the perplexities of the dense model there, which are one where all runs have one model."""
    found: dict[str, set[float]] = {}
    for run in runs:
        found.setdefault(run.split, set()).update(row["perplexity"] for row in run.report["rows"] if row["name"] == DENSE)
    return found


def _ordering(value: str) -> tuple[float, str]:
    """Numbers by size, then other values by name."""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value
