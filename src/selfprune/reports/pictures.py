"""The report's pictures of scores: over the tokens of a search, and of several objectives against each other."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from selfprune.allocations.candidate import FINAL, Candidate
from selfprune.allocations.objective import LATENCY
from selfprune.allocations.unit import Allocation
from selfprune.storage.whole_files import write_whole

LINE_STYLES = ("-", "--", ":", "-.")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Told apart by colour-blind readers, too (Okabe and Ito, 2008)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WIDE_RATIO = 4.0
"""Highest over lowest score from which an axis is logarithmic."""
WHY_IT_RISES = "A line may rise where its incumbent is scored on more windows than before: scores compare on equal windows only."


@dataclass(frozen=True)
class ProgressLine:
    """The incumbent of one search over its tokens.

    Attributes:
        search: its name.
        n_tokens: spent when the score was known.
        scores: of the incumbent then.
        n_windows: that each score rests on.
        champions: those that took the place, with the tokens spent by then.
        n_tokens_in_all: spent at the end.
    """

    search: str
    n_tokens: list[int]
    scores: list[float]
    n_windows: list[int]
    champions: list[tuple[int, Candidate]]
    n_tokens_in_all: int


def progress_lines(candidates: Sequence[Candidate], n_tokens_before: Mapping[str, int] | None = None) -> list[ProgressLine]:
    """Every search of an archive as a line.

    Args:
        candidates: the archive.
        n_tokens_before: search -> tokens that it had spent before its first candidate.
    """
    lines = []
    for search in dict.fromkeys(c.search for c in candidates):
        line = ProgressLine(search, [], [], [], [], 0)
        spent = (n_tokens_before or {}).get(search, 0)
        for candidate in (c for c in candidates if c.search == search):
            spent += candidate.n_tokens
            if candidate.score is None or candidate.proposal.operator == FINAL:
                continue
            if candidate.gain is not None or candidate.is_champion_again:
                line.n_tokens.append(spent)
                line.scores.append(candidate.score)
                line.n_windows.append(candidate.n_windows)
            if candidate.gain is not None:
                line.champions.append((spent, candidate))
        lines.append(ProgressLine(search, line.n_tokens, line.scores, line.n_windows, line.champions, spent))
    return lines


def progress_figure(candidates: Sequence[Candidate], n_tokens_before: Mapping[str, int], score: str) -> Figure:
    """The incumbent's score against tokens spent, one line per search, with a mark for whoever proposed each new one.

    Args:
        candidates: the archive.
        n_tokens_before: search -> tokens that it had spent before its first candidate.
        score: what is measured, with its unit.
    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    lines = progress_lines(candidates, n_tokens_before)
    proposers = dict.fromkeys(c.proposal.proposer for line in lines for _, c in line.champions)
    looks = dict(zip(proposers, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
    for line, style in zip((line for line in lines if line.scores), cycle(LINE_STYLES), strict=False):
        ends = [*line.n_tokens, line.n_tokens_in_all], [*line.scores, line.scores[-1]]
        axes.step(*ends, where="post", color="0.3", linestyle=style, label=f"search: {line.search}")
    for proposer, (colour, marker) in looks.items():
        marks = [(spent, c.score) for line in lines for spent, c in line.champions if c.proposal.proposer == proposer]
        xs, ys = zip(*marks, strict=True)
        edge: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.5}
        axes.plot(xs, ys, linestyle="none", color=colour, marker=marker, label=proposer, zorder=3, **edge)
    uniform = [c for c in candidates if c.proposal.proposer == "uniform" and c.score is not None]
    if uniform and uniform[0].score is not None:
        label = f"uniform ({uniform[0].n_windows} windows)"
        axes.axhline(uniform[0].score, color="0.75", linewidth=1.5, zorder=1, label=label)
    _scale(axes, "y", [s for line in lines for s in line.scores] + [c.score for c in uniform[:1] if c.score is not None])
    axes.set_xlabel("tokens of evaluation spent")
    figure.supxlabel(WHY_IT_RISES, fontsize=9)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel(f"the incumbent's {score}\nlower is better")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
    axes.grid(alpha=0.3)
    return figure


def front_figure(rivals: Sequence[Candidate], front: Sequence[Candidate], winner: Allocation, score: str) -> Figure:
    """One panel for every two of two to four objectives: all candidates that compare, the undominated and the winner.

    Args:
        rivals: candidates with the same objectives.
        front: those that no other dominates.
        winner: its allocation.
        score: what is measured on every kind of window, with its unit.
    """
    pairs = list(combinations(rivals[0].objectives, 2))
    n_columns = min(3, len(pairs))
    n_rows = math.ceil(len(pairs) / n_columns)
    figure = Figure(figsize=(4.8 * n_columns, 4.2 * n_rows), layout="constrained")
    figure.suptitle(f"{score}, by kind of window; lower is better", fontsize=10)
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes, names in zip(panels, pairs, strict=False):
        for group, label, style in (
            (rivals, "candidate", {"marker": "o", "facecolors": "none", "edgecolors": "0.5"}),
            (front, "not dominated", {"marker": "s", "color": COLOURS[0]}),
            (
                [c for c in rivals if c.allocation == winner],
                "winner",
                {"marker": "*", "color": COLOURS[1], "s": 160, "zorder": 3},
            ),
        ):
            axes.scatter(*([c.objectives[name] for c in group] for name in names), label=label, **style)
        _name(axes, names, rivals)
    for axes in panels[len(pairs) :]:
        axes.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    return figure


def _name(axes: Axes, names: tuple[str, str], rivals: Sequence[Candidate]) -> None:
    for which, name in zip("xy", names, strict=True):
        _scale(axes, which, [c.objectives[name] for c in rivals])
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_label_text(name.replace("_", " "))
        if name == LATENCY:
            axis.set_major_formatter(EngFormatter(unit="s"))
            axis.set_label_text("latency of the units")
    axes.grid(alpha=0.3)


def _scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers where the values differ by much, and a linear one elsewhere."""
    axis, set_scale = (axes.xaxis, axes.set_xscale) if which == "x" else (axes.yaxis, axes.set_yscale)
    if values and min(values) > 0 and max(values) / min(values) >= WIDE_RATIO:
        set_scale("log")
        n_decades = math.log10(max(values) / min(values))
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if n_decades < 1.2 else (1.0, 3.0) if n_decades < 2.5 else (1.0,)))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all.

    Args:
        figure: what was drawn.
        path: the PNG file.

    Raises:
        SelfpruneError: when the file cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_whole(path, buffer.getvalue())
