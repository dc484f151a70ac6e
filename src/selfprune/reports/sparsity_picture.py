"""Where allocations are sparse, as a picture: heat maps of sparsity per block and module kind, on one colour scale."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation

MAX_WIDTH = 13.0
"""Inches; panels that do not fit beside each other stand below each other."""
MAX_HEIGHT = 5.0
"""Inches of a panel, however many kinds of modules there are."""
MAX_NUMBERED = 16
"""Blocks up to which every cell carries its number."""


def sparsity_figure(allocations: Mapping[str, Allocation], grid: LevelGrid) -> Figure:
    """One panel per allocation.

    Args:
        allocations: title -> allocation.
        grid: its units.
    """
    kinds = list(dict.fromkeys(unit.kind for unit in grid.units))
    n_blocks = max(unit.block for unit in grid.units) + 1
    width = max(3.0, min(n_blocks * (0.42 if n_blocks <= MAX_NUMBERED else 0.19), MAX_WIDTH - 3))
    height = 0.9 + min(0.32 * len(kinds), MAX_HEIGHT)
    n_columns = max(1, min(len(allocations), int((MAX_WIDTH - 2.5) / width)))
    n_rows = math.ceil(len(allocations) / n_columns)
    n_columns = math.ceil(len(allocations) / n_rows)
    figure = Figure(figsize=(2.5 + width * n_columns, height * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axes, (title, allocation) in zip(panels.flat, allocations.items(), strict=False):
        sparsity_KB = np.full((len(kinds), n_blocks), np.nan)
        for unit in grid.units:
            sparsity_KB[kinds.index(unit.kind), unit.block] = allocation[unit.name] / unit.n_items
        image = _draw(axes, sparsity_KB)
        axes.set_title(title)
        axes.set_xticks(range(0, n_blocks, _step(n_blocks, width, 0.35)))
        shown = range(0, len(kinds), _step(len(kinds), height - 0.9, 0.17))
        axes.set_yticks(shown, [kinds[i].split(".", 1)[-1] for i in shown])
    for axes in panels.flat[len(allocations) :]:
        axes.set_axis_off()
    for axes in panels.flat[max(0, len(allocations) - n_columns) : len(allocations)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("block")
    figure.colorbar(image, ax=panels, label="sparsity", fraction=0.04, aspect=40, format=lambda value, _: f"{100 * value:.0f}%")
    return figure


def _draw(axes: Axes, sparsity_KB: NDArray[np.float64]) -> AxesImage:
    image = axes.imshow(sparsity_KB, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    if sparsity_KB.shape[1] <= MAX_NUMBERED and sparsity_KB.shape[0] <= MAX_NUMBERED:
        for (row, column), value in np.ndenumerate(sparsity_KB):
            if not np.isnan(value):
                colour = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return image


def _step(n: int, inches: float, inches_per_label: float) -> int:
    """The least round step at which labels do not run into each other."""
    return next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, n) if step >= n or inches / n * step >= inches_per_label)
