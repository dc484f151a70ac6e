"""What the gradients of a search said, drawn: what more pruning of every unit would cost, and how well they foretold scores."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from selfprune.allocations.candidate import Candidate
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation
from selfprune.reports.insight.seen_moves import SeenMoves, foretold_changes, seen_at
from selfprune.reports.page.figures import MARGIN, Picture, block_map
from selfprune.reports.pictures import COLOURS
from selfprune.search.scoring import digest

SHARE = 0.001
"""Of all weights: what is compared between units."""


def cost_picture(moves: dict[str, SeenMoves], winner: Allocation, grid: LevelGrid) -> Picture | None:
    """What as many weights more would cost in every unit, at the winner or else where gradients were taken last.

    Args:
        moves: as of `read_moves`.
        winner: the allocation of the winner.
        grid: its units.

    Returns:
        None where no gradients were taken.
    """
    seen = seen_at(moves, winner, grid)
    if seen is None:
        return None
    n_weights = SHARE * grid.n_weights()
    costs = {name: cost * n_weights for name, cost in seen.costs_per_weight(grid).items()}
    told = {name: f"{name}<br>a rise of {cost:.3g}" for name, cost in costs.items()}
    look = {"colorscale": "Cividis", "colorbar": {"title": {"text": "rise"}, "thickness": 12}}
    figure = block_map(grid, [{"values": costs, "told": told}], look)
    where = "at the winner" if digest(winner, grid) in moves else "at the last allocation whose gradients were taken"
    text = (
        f"The rise of the score if {SHARE:.1%} of all weights went in one unit, by gradients {where}. At an optimum, units that "
        "may still give are all alike."
    )
    rows = [[name, f"{cost:.5g}"] for name, cost in costs.items()]
    return Picture("costs", "What more pruning would cost", text, figure, ["unit", f"rise for {SHARE:.1%} of all weights"], rows)


def foretold_picture(moves: dict[str, SeenMoves], candidates: Sequence[Candidate], grid: LevelGrid) -> Picture | None:
    """Changes of the score as gradients foretold them, against those that were measured on equal windows.

    Args:
        moves: as of `read_moves`.
        candidates: the archive.
        grid: its units.

    Returns:
        None where no candidate has a parent at which gradients were taken.
    """
    known = {
        (digest(c.allocation, grid), c.n_windows): c.score
        for c in candidates
        if c.score is not None and c.proposal.allocation is not None
    }
    points: list[tuple[Candidate, float, float]] = []
    for foretold in foretold_changes(moves, candidates, grid):
        candidate, before = foretold.candidate, known.get((foretold.at, foretold.candidate.n_windows))
        if candidate.score is not None and before is not None and math.isfinite(candidate.score - before):
            points.append((candidate, foretold.change, candidate.score - before))
    if not points:
        return None
    figure = go.Figure()
    ends = [min(min(x, y) for _, x, y in points), max(max(x, y) for _, x, y in points)]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="as foretold", line={"dash": "dot", "color": "#888"}, hoverinfo="skip")
    for i, proposer in enumerate(dict.fromkeys(candidate.proposal.proposer for candidate, _, _ in points)):
        ours = [point for point in points if point[0].proposal.proposer == proposer]
        figure.add_scatter(
            x=[x for _, x, _ in ours],
            y=[y for _, _, y in ours],
            mode="markers",
            name=proposer,
            marker={"color": COLOURS[i % len(COLOURS)], "size": 9},
            text=[f"candidate {c.id} ({c.proposal.operator or 'whole'}), {c.n_windows} windows" for c, _, _ in ours],
            hovertemplate="%{text}<br>foretold %{x:.4g}, measured %{y:.4g}<extra></extra>",
        )
    figure.update_layout(height=420, margin=MARGIN, legend={"orientation": "h", "y": -0.25, "x": 0})
    figure.update_xaxes(title_text="foretold by gradients at the parent")
    figure.update_yaxes(title_text="measured change of the score")
    header = ["candidate", "proposer", "windows", "foretold", "measured"]
    rows = [[str(c.id), c.proposal.proposer, str(c.n_windows), f"{x:.5g}", f"{y:.5g}"] for c, x, y in points]
    text = "Changes of the score from a parent to its child; below the line, a move did better than its gradients said."
    return Picture("foretold", "What gradients foretold, and what came", text, figure, header, rows)
