"""How wide the blocks of a model are once heads and channels are gone: bars over the outlines of the dense model."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation, Item, Unit

LABELS = {Item.HEAD_GROUP: "groups of heads", Item.CHANNEL: "FFN channels", Item.EXPERT: "experts"}
KEPT, GONE = "#0072B2", "#BBBBBB"


def width_figure(allocation: Allocation, grid: LevelGrid) -> Figure:
    """One panel for the heads, which go in groups that share keys and values, and one for the channels.

    Args:
        allocation: of the pruned model.
        grid: its units, heads and channels.
    """
    of_item: dict[Item, list[Unit]] = {}
    for unit in grid.units:
        of_item.setdefault(unit.item, []).append(unit)
    n_blocks = max(unit.block for unit in grid.units) + 1
    figure = Figure(figsize=(max(5.0, min(0.34 * n_blocks + 1.5, 13.0)), 2.0 * len(of_item) + 0.6), layout="constrained")
    panels = figure.subplots(len(of_item), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (item, units) in zip(panels, of_item.items(), strict=True):
        blocks = [unit.block for unit in units]
        kept = [unit.n_items - allocation[unit.name] for unit in units]
        axes.bar(blocks, [unit.n_items for unit in units], width=0.8, fill=False, edgecolor=GONE, label="dense")
        axes.bar(blocks, kept, width=0.8, color=KEPT, label="winner")
        for block, n in zip(blocks, kept, strict=True):
            if n_blocks <= 32:
                axes.annotate(f"{n:,}", (block, n), (0, 1), textcoords="offset points", ha="center", va="bottom", fontsize=6)
        axes.set_ylabel(LABELS[item])
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 1.15 * max(unit.n_items for unit in units))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)
    panels[-1].set_xlabel("block")
    panels[-1].set_xlim(-0.7, n_blocks - 0.3)
    return figure
