"""The report's pictures."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import combinations, cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from selfprune.allocation import Allocation, LevelGrid
from selfprune.candidate import FINAL, Candidate
from selfprune.journal import write_whole

LINE_STYLES = ("-", "--", ":", "-.")


def draw_sparsities(path: Path, allocations: Mapping[str, Allocation], grid: LevelGrid) -> None:
    """Heat maps of sparsity per block and module kind, one per allocation, on one colour scale.

    Args:
        path: the PNG file.
        allocations: title -> allocation.
        grid: its units.
    """
    kinds = list(dict.fromkeys(unit.kind for unit in grid.units))
    n_blocks = max(unit.block for unit in grid.units) + 1
    figure = Figure(figsize=(2.2 + 0.42 * n_blocks * len(allocations), 1.8 + 0.32 * len(kinds)), layout="constrained")
    panels = figure.subplots(1, len(allocations), sharey=True, squeeze=False)[0]
    for axes, (title, allocation) in zip(panels, allocations.items(), strict=True):
        sparsity_KB = np.full((len(kinds), n_blocks), np.nan)
        for unit in grid.units:
            sparsity_KB[kinds.index(unit.kind), unit.block] = allocation[unit.name] / unit.n_items
        image = axes.imshow(sparsity_KB, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(sparsity_KB):
            if n_blocks <= 16 and not np.isnan(value):
                axes.text(
                    column,
                    row,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="black" if value > 0.6 else "white",
                )
        axes.set_title(title)
        axes.set_xlabel("block")
        axes.set_xticks(range(0, n_blocks, 1 if n_blocks <= 16 else 4))
        axes.set_yticks(range(len(kinds)), [kind.split(".", 1)[-1] for kind in kinds])
    figure.colorbar(image, ax=list(panels), label="sparsity", format=lambda value, _: f"{100 * value:.0f}%")
    _save(figure, path)


def draw_progress(path: Path, candidates: Sequence[Candidate], n_tokens_before: Mapping[str, int]) -> None:
    """The incumbent's score against tokens spent, one line per search, with a mark for whoever proposed each new one.

    The score rises where a new rung shows more windows.

    Args:
        path: the PNG file.
        candidates: the archive.
        n_tokens_before: search -> tokens that it had spent before its first candidate.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    proposers = list(dict.fromkeys(c.proposal.proposer for c in candidates))
    colours = {proposer: f"C{i % 10}" for i, proposer in enumerate(proposers)}
    labelled: set[str] = set()
    for search, style in zip(dict.fromkeys(c.search for c in candidates), cycle(LINE_STYLES), strict=False):
        n_tokens, line = n_tokens_before.get(search, 0), []
        for candidate in (c for c in candidates if c.search == search):
            n_tokens += candidate.n_tokens
            if candidate.score is None or candidate.proposal.operator == FINAL:
                continue
            if candidate.gain is not None or candidate.is_champion_again:
                line.append((n_tokens, candidate.score))
            if candidate.gain is not None:
                proposer = candidate.proposal.proposer
                label = None if proposer in labelled else proposer
                axes.plot(n_tokens, candidate.score, "o", color=colours[proposer], label=label, zorder=3)
                labelled.add(proposer)
        if line:
            tokens, scores = zip(*line, strict=True)
            axes.step(
                [*tokens, n_tokens],
                [*scores, scores[-1]],
                where="post",
                color="0.3",
                linestyle=style,
                label=f"search: {search}",
            )
    axes.set_xlabel("tokens spent")
    axes.set_ylabel("the incumbent's score")
    axes.legend()
    axes.grid(alpha=0.3)
    _save(figure, path)


def draw_front(path: Path, rivals: Sequence[Candidate], front: Sequence[Candidate], winner: Allocation) -> None:
    """One panel for every two of two to four objectives: all candidates that compare, the undominated and the winner.

    Args:
        path: the PNG file.
        rivals: candidates with the same objectives.
        front: those that no other dominates.
        winner: its allocation.
    """
    pairs = list(combinations(rivals[0].objectives, 2))
    n_columns = min(3, len(pairs))
    n_rows = math.ceil(len(pairs) / n_columns)
    figure = Figure(figsize=(4.5 * n_columns, 4 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flat
    for axes, names in zip(panels, pairs, strict=True):
        for group, label, style in (
            (rivals, "candidate", {"marker": "o", "color": "0.7"}),
            (front, "not dominated", {"marker": "o", "color": "C0"}),
            ([c for c in rivals if c.allocation == winner], "winner", {"marker": "*", "color": "C3", "s": 120}),
        ):
            axes.scatter(*([c.objectives[name] for c in group] for name in names), label=label, **style)
        axes.locator_params(nbins=5)
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        axes.grid(alpha=0.3)
    panels[0].legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_whole(path, buffer.getvalue())
