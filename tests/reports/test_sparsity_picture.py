import itertools
from functools import cache

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Unit
from selfprune.reports.sparsity_picture import MAX_WIDTH, sparsity_figure

KINDS = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
TITLES = ["uniform", "owl", "alphapruning", "dlp", "winner"]


@cache
def drawn(n_blocks, kinds=tuple(KINDS)):
    grid = LevelGrid.with_constant_step([Unit(f"{b}.{kind}", b, kind, 100) for b in range(n_blocks) for kind in kinds], 0.05)
    allocations = {title: {unit.name: 10 * i for unit in grid.units} for i, title in enumerate(TITLES)}
    figure = sparsity_figure(allocations, grid)
    FigureCanvasAgg(figure).draw()
    return figure, [axes for axes in figure.axes if axes.get_title()]


@pytest.mark.parametrize("n_blocks", [1, 8, 17, 126])
def test_panels_stack_and_no_label_runs_into_another(n_blocks):
    figure, panels = drawn(n_blocks)
    assert [axes.get_title() for axes in panels] == TITLES
    assert figure.get_size_inches()[0] <= MAX_WIDTH
    boxes = [axes.get_tightbbox() for axes in panels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for axes in panels:
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            labels = [label.get_window_extent() for label in ticks if label.get_visible() and label.get_text()]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(labels))


def test_the_lowest_panel_of_every_column_names_the_blocks():
    _, panels = drawn(8)
    assert [axes.get_xlabel() for axes in panels] == ["", "", "block", "block", "block"]


def test_many_kinds_of_modules_keep_a_panel_on_the_page():
    figure, panels = drawn(24, tuple(f"mlp.experts.{e}.{kind}" for e in range(64) for kind in ("gate", "up", "down")))
    assert figure.get_size_inches()[1] <= 6 * len(panels)
    labels = [label.get_window_extent() for label in panels[0].get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(labels))


def test_few_blocks_carry_their_numbers():
    _, panels = drawn(2, tuple(KINDS[:1]))
    assert [text.get_text() for text in panels[1].texts] == ["10", "10"]
