import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from selfprune.allocations.candidate import FINAL, RE_ENTRY, Candidate, Proposal, State
from selfprune.allocations.objective import LATENCY
from selfprune.reports.pictures import WHY_IT_RISES, front_figure, progress_figure, progress_lines, save_figure


def candidate(id_, score, gain=None, n_windows=8, proposer="gradient", operator="", search="main", **objectives):
    proposal = Proposal({"a": id_}, proposer, operator)
    return Candidate(id_, search, proposal, State.COMPLETE, score, n_windows, 100, gain, objectives=objectives)


ARCHIVE = [
    candidate(0, 0.5, proposer="uniform"),
    candidate(1, 0.2, 0.0, proposer="owl"),
    candidate(2, 0.1, 0.1),
    candidate(3, 0.12, n_windows=32, operator=RE_ENTRY),
    candidate(4, 0.3),
    candidate(5, 0.11, n_windows=64, operator=FINAL),
    candidate(6, 0.4, 0.0, proposer="random", search="random"),
]


def test_a_line_follows_the_incumbent_and_knows_on_how_many_windows_it_stands():
    main, other = progress_lines(ARCHIVE, {"main": 50})
    assert (main.n_tokens, main.scores, main.n_windows) == ([250, 350, 450], [0.2, 0.1, 0.12], [8, 8, 32])
    assert [(spent, c.id) for spent, c in main.champions] == [(250, 1), (350, 2)]
    assert (main.n_tokens_in_all, other.n_tokens_in_all) == (650, 100)


def test_the_picture_of_a_search_has_a_unit_a_direction_uniform_and_the_reason_why_lines_rise(tmp_path):
    figure = progress_figure(ARCHIVE, {}, "KL to the dense model (nats per token)")
    (axes,) = figure.axes
    assert axes.get_ylabel() == "the incumbent's KL to the dense model (nats per token)\nlower is better"
    assert axes.get_yscale() == "log"
    assert figure.get_supxlabel() == WHY_IT_RISES
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["search: main", "search: random", "owl", "gradient", "random", "uniform (8 windows)"]
    (uniform,) = [line for line in axes.lines if line.get_label().startswith("uniform")]
    assert list(uniform.get_ydata()) == [0.5, 0.5]
    save_figure(figure, tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_scores_that_hardly_differ_stay_on_a_linear_axis():
    assert progress_figure([candidate(0, 3.2, 0.0), candidate(1, 3.1, 0.1)], {}, "score").axes[0].get_yscale() == "linear"


def test_every_proposer_has_a_colour_and_a_marker_of_its_own():
    archive = [candidate(i, 1.0 / (1 + i), 0.1, proposer=f"p{i}") for i in range(20)]
    marks = [line for line in progress_figure(archive, {}, "score").axes[0].lines if line.get_marker() != "None"]
    looks = [(line.get_color(), line.get_marker()) for line in marks]
    assert len(set(looks)) == 20
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in itertools.pairwise(looks))


@pytest.mark.parametrize("n_kinds", [1, 2, 3])
def test_the_axes_of_several_objectives_are_readable(n_kinds):
    kinds = ["text", "self_generated", "tasks"][:n_kinds]
    field = [candidate(i, 0.1, **{kind: 0.01 * 4**i for kind in kinds}, **{LATENCY: 3.1e-5 + i * 1e-7}) for i in range(4)]
    figure = front_figure(field, field[:1], field[0].allocation, "KL to the dense model (nats per token)")
    FigureCanvasAgg(figure).draw()
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert len(panels) == n_kinds * (n_kinds + 1) // 2
    for axes in panels:
        assert axes.get_xscale() == "log"
        assert axes.get_yscale() == ("linear" if axes.get_ylabel() == "latency of the units" else "log")
        assert axes.yaxis.get_offset_text().get_text() == ""
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            labels = [label.get_window_extent() for label in ticks if label.get_text()]
            assert labels
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(labels))
        if axes.get_ylabel() == "latency of the units":
            assert all(label.get_text().endswith("µs") for label in axes.get_yticklabels())
    assert figure.get_suptitle() == "KL to the dense model (nats per token), by kind of window; lower is better"
