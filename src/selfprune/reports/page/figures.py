"""The interactive pictures of the page, drawn by Plotly in the reader's browser.

Every picture comes with its numbers as a table, for readers who use a keyboard, a screen reader or a spreadsheet.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from selfprune.allocations.candidate import Candidate
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation, Item, Unit
from selfprune.reports.pictures import COLOURS, LINE_STYLES, WIDE_RATIO, progress_lines
from selfprune.reports.width_picture import GONE, KEPT, LABELS

DASHES = dict(zip(LINE_STYLES, ("solid", "dash", "dot", "dashdot"), strict=True))
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "x", "cross", "star")
GREYS = ("#777777", "#aaaaaa", "#999966", "#996699")
MARGIN = {"l": 56, "r": 12, "t": 12, "b": 48}


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        key: by which the page finds it.
        title: its heading.
        text: what it shows, in a sentence.
        figure: what is drawn.
        header: titles of its numbers.
        rows: its numbers.
        choices: what a reader may choose between; the traces of the choices that are not made are hidden.
    """

    key: str
    title: str
    text: str
    figure: go.Figure
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    choices: Sequence[str] = ()


def allocation_picture(allocations: Mapping[str, Allocation], grid: LevelGrid) -> Picture:
    """A heat map of blocks and kinds for every allocation, one of which is shown.

    Args:
        allocations: title -> allocation, the one that is shown first in front.
        grid: its units.
    """
    look = {"colorscale": "Viridis", "zmin": 0, "zmax": 1}
    look["colorbar"] = {"tickformat": ".0%", "title": {"text": "sparsity"}, "thickness": 12}
    maps = []
    for i, allocation in enumerate(allocations.values()):
        shares = grid.sparsities(allocation)
        told = {unit.name: _told(unit, allocation) for unit in grid.units}
        maps.append({"values": shares, "told": told, "visible": i == 0})
    figure = block_map(grid, maps, look)
    rows = [
        [unit.name, *(f"{allocation[unit.name] / unit.n_items:.1%}" for allocation in allocations.values())]
        for unit in grid.units
    ]
    text = "The share of every module's weights, heads or channels that went. Point at a cell for its numbers."
    return Picture("allocation", "Where the model was pruned", text, figure, ["unit", *allocations], rows, list(allocations))


def width_picture(allocation: Allocation, grid: LevelGrid) -> Picture:
    """How wide every block is, over what the dense one was."""
    of_item: dict[Item, list[Unit]] = {}
    for unit in grid.units:
        of_item.setdefault(unit.item, []).append(unit)
    figure = go.Figure()
    for i, (item, units) in enumerate(of_item.items()):
        blocks, axis = [unit.block for unit in units], "" if i == 0 else str(i + 1)
        kept = [unit.n_items - allocation[unit.name] for unit in units]
        of_dense = {"marker": {"color": "rgba(0,0,0,0)", "line": {"color": GONE, "width": 1}}, "name": "dense"}
        for values, look in (([unit.n_items for unit in units], of_dense), (kept, {"marker": {"color": KEPT}, "name": "winner"})):
            hover = "block %{x}: %{y:,} " + LABELS.get(item, "items") + "<extra></extra>"
            figure.add_bar(x=blocks, y=values, yaxis=f"y{axis}", hovertemplate=hover, showlegend=i == 0, **look)
        share = 1 / len(of_item)
        domain = [max(0.0, 1 - share * (i + 1) + 0.06 * (i + 1 < len(of_item))), 1 - share * i]
        figure.update_layout({f"yaxis{axis}": {"domain": domain, "title": {"text": LABELS.get(item, "items")}}})
    figure.update_layout(
        barmode="overlay", height=90 + 150 * len(of_item), margin=MARGIN, legend={"orientation": "h", "y": 1.12, "x": 0}
    )
    figure.update_xaxes(title_text="block", anchor=f"y{axis}")
    rows = [[unit.name, f"{unit.n_items:,}", f"{unit.n_items - allocation[unit.name]:,}"] for unit in grid.units]
    text = "Heads and channels that every block keeps; outlines are those of the dense model."
    return Picture("widths", "How wide the blocks are now", text, figure, ["unit", "dense", "winner"], rows)


def progress_picture(candidates: Sequence[Candidate], n_tokens_before: Mapping[str, int], score: str) -> Picture:
    """The incumbents of all searches over their tokens, with the yardsticks as lines.

    Args:
        candidates: the archive.
        n_tokens_before: search -> tokens that it had spent before its first candidate.
        score: what is measured, with its unit.
    """
    lines = [line for line in progress_lines(candidates, n_tokens_before) if line.scores]
    proposers = list(dict.fromkeys(c.proposal.proposer for line in lines for _, c in line.champions))
    figure, rows = go.Figure(), []
    for i, line in enumerate(lines):
        look = {"shape": "hv", "dash": list(DASHES.values())[i % len(DASHES)], "width": 2}
        ends = [*line.n_tokens, line.n_tokens_in_all], [*line.scores, line.scores[-1]]
        figure.add_scatter(x=ends[0], y=ends[1], mode="lines", line=look, name=f"search: {line.search}", hoverinfo="skip")
        rows += [
            [line.search, str(c.id), c.proposal.proposer, f"{spent:,}", f"{c.score:.5g}", str(c.n_windows)]
            for spent, c in line.champions
        ]
    for i, proposer in enumerate(proposers):
        marks = [(spent, c) for line in lines for spent, c in line.champions if c.proposal.proposer == proposer]
        figure.add_scatter(
            x=[spent for spent, _ in marks],
            y=[c.score for _, c in marks],
            mode="markers",
            name=proposer,
            marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "color": COLOURS[i % len(COLOURS)], "size": 9},
            text=[f"candidate {c.id} by {proposer} ({c.proposal.operator or 'whole'}), {c.n_windows} windows" for _, c in marks],
            hovertemplate="%{text}<br>%{x:,} tokens: %{y:.5g}<extra></extra>",
        )
    scores = [score for line in lines for score in line.scores]
    end = max((line.n_tokens_in_all for line in lines), default=0)
    for i, (name, known) in enumerate(_closed_forms(candidates).items()):
        look = {"dash": "dot", "width": 1.5, "color": GREYS[i % len(GREYS)]}
        hover = f"{name}, {known.n_windows} windows: %{{y:.5g}}<extra></extra>"
        ys = [known.score, known.score]
        figure.add_scatter(x=[0, end], y=ys, mode="lines", line=look, name=f"yardstick: {name}", hovertemplate=hover)
        scores.append(known.score or 0.0)
    figure.update_layout(height=420, margin=MARGIN, legend={"orientation": "h", "y": -0.25, "x": 0})
    figure.update_xaxes(title_text="tokens of evaluation spent", rangemode="tozero")
    figure.update_yaxes(title_text=score, **_scale(scores))
    header = ["search", "candidate", "proposer", "tokens", "score", "windows"]
    text = (
        "The best score so far of every search; a mark tells who proposed it. Lower is better, and scores compare on equal "
        "windows only, so that a line may rise where more windows were opened."
    )
    return Picture("progress", "How the search went", text, figure, header, rows)


def front_picture(rivals: Sequence[Candidate], front: Sequence[Candidate], winner: Allocation) -> Picture:
    """All candidates by the first two of their objectives; those that no other dominates, and the winner."""
    names = list(rivals[0].objectives)[:2]
    figure = go.Figure()
    for group, name, look in (
        (rivals, "candidate", {"color": "#999", "size": 6, "symbol": "circle-open"}),
        (front, "not dominated", {"color": COLOURS[0], "size": 9, "symbol": "square"}),
        ([c for c in rivals if c.allocation == winner], "winner", {"color": COLOURS[1], "size": 14, "symbol": "star"}),
    ):
        xs, ys = ([c.objectives[one] for c in group] for one in names)
        text = [f"candidate {c.id} by {c.proposal.proposer}" for c in group]
        hover = "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>"
        figure.add_scatter(x=xs, y=ys, mode="markers", name=name, marker=look, text=text, hovertemplate=hover)
    figure.update_layout(height=420, margin=MARGIN, legend={"orientation": "h", "y": -0.25, "x": 0})
    figure.update_xaxes(title_text=names[0].replace("_", " "))
    figure.update_yaxes(title_text=names[1].replace("_", " "))
    rows = [[str(c.id), c.proposal.proposer, *(f"{value:.5g}" for value in c.objectives.values())] for c in front]
    header = ["candidate", "proposer", *(name.replace("_", " ") for name in rivals[0].objectives)]
    return Picture("front", "Several objectives", "Lower is better in both directions.", figure, header, rows)


def block_map(grid: LevelGrid, maps: Sequence[Mapping[str, Any]], look: Mapping[str, Any]) -> go.Figure:
    """Heat maps of numbers per unit, blocks beside each other and kinds below each other, one over the other.

    Args:
        grid: the units.
        maps: for each, `values` (unit -> number; those that are missing stay empty), `told` (unit -> what a cell tells when it is
            pointed at), and what else its trace has.
        look: what all traces have.
    """
    kinds = list(dict.fromkeys(unit.kind for unit in grid.units))
    blocks = sorted({unit.block for unit in grid.units})
    name_of = {(unit.kind, unit.block): unit.name for unit in grid.units}
    cells = [[name_of.get((kind, block), "") for block in blocks] for kind in kinds]
    figure = go.Figure()
    for each in maps:
        z, text = ([[each[what].get(name) for name in row] for row in cells] for what in ("values", "told"))
        own = {name: value for name, value in each.items() if name not in ("values", "told")}
        hover = "%{text}<extra></extra>"
        figure.add_heatmap(x=blocks, y=kind_labels(kinds), z=z, text=text, hovertemplate=hover, **look, **own)
    figure.update_layout(height=110 + 30 * len(kinds), margin=MARGIN | {"l": 84})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="block", dtick=1 if len(blocks) <= 24 else None)
    return figure


def kind_labels(kinds: Sequence[str]) -> list[str]:
    """Short names of kinds, all different: the last part, or the whole where others end alike, as in `attn.c_proj`."""
    short = [kind.rpartition(".")[2] for kind in kinds]
    return [name if short.count(name) == 1 else kind for name, kind in zip(short, kinds, strict=True)]


def _closed_forms(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """The closed forms that raced first in the main search: those of an operator without a name, before any other."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        if candidate.search != "main" or candidate.proposal.operator or candidate.proposal.parents:
            break
        if candidate.score is not None:
            found[candidate.proposal.proposer] = candidate
    return found


def _scale(scores: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with few round numbers where the scores differ by much, and a linear one elsewhere."""
    positive = [score for score in scores if score > 0 and math.isfinite(score)]
    if len(positive) < len(scores) or not positive or max(positive) < WIDE_RATIO * min(positive):
        return {"type": "linear"}
    decades = range(math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in ((1, 2, 5) if len(decades) < 5 else (1,))]
    ends = [math.log10(min(positive)) - 0.1, math.log10(max(positive)) + 0.1]
    return {"type": "log", "range": ends, "tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}


def _told(unit: Unit, allocation: Allocation) -> str:
    gone = allocation[unit.name]
    what = {Item.WEIGHT: "weights"}.get(unit.item) or LABELS.get(unit.item, "items")
    return f"{unit.name}<br>{gone / unit.n_items:.1%}: {gone:,} of {unit.n_items:,} {what} gone"
