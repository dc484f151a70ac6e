"""The page, read as HTML, and drawn by a real browser where there is one."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Item, Unit
from selfprune.reports.insight.seen_moves import read_moves
from selfprune.reports.page.figures import allocation_picture, front_picture, progress_picture, width_picture
from selfprune.reports.page.moves import cost_picture, foretold_picture
from selfprune.reports.page.page import report_page
from selfprune.search.scoring import digest

UNITS = [
    unit
    for block in range(3)
    for unit in (
        Unit(f"layers.{block}.self_attn", block, "self_attn", 4, 10, Item.HEAD_GROUP, f"layers.{block}.o_proj", 2),
        Unit(f"layers.{block}.mlp", block, "mlp", 8, 6, Item.CHANNEL, f"layers.{block}.down_proj", 1),
    )
]
GRID = LevelGrid.with_constant_step(UNITS, 0.25)
UNIFORM = {unit.name: unit.n_items // 2 for unit in UNITS}
WINNER = {**UNIFORM, "layers.0.mlp": 2, "layers.1.self_attn": 4}
EVIL = "</script><script>alert(1)</script> & <b>"


def candidate(i, allocation, proposer, score, search="main", operator="", gain=None):
    state = State.COMPLETE
    return Candidate(
        i,
        search,
        Proposal(allocation, proposer, operator),
        state,
        score,
        8,
        100,
        gain,
        objectives={"text": score, "tasks": 1 / score},
    )


ARCHIVE = [
    candidate(0, UNIFORM, "uniform", 0.9),
    candidate(1, WINNER, "gradient", 0.05, operator="step", gain=0.85),
    candidate(2, UNIFORM, "random", 0.7, search="random", operator="draw", gain=0.1),
]
LEDGER = {
    "proposed": 1,
    "complete": 1,
    "stopped": 0,
    "failed": 0,
    "n_tokens": 100,
    "won": 1,
    "gain": 0.85,
    "gain_per_million_tokens": 8.5,
}


def row(name, kl):
    numbers = {"name": name, "sparsity": 0.5, "saved": 0.5, "kl": kl, "perplexity": 3.0, "tasks": {}}
    return numbers | {"n_tokens": 100, "seconds": 1.0, "language_model_tokens": 5}


REPORT = {
    "rows": [row("dense", 0.0), row("uniform", 0.9), row("winner", 0.051234)],
    "verdict": {"sentence": "The winner beat uniform & co."},
    "budget": {"measure": "WEIGHTS", "sparsity": 0.5},
    "search": {
        "n_candidates": 3, "ending": "it was enough", "n_tokens": 300, "seconds": 1.0, "n_proposal_tokens": 0,
        "winner": {"id": 1, "proposer": "gradient", "score": 0.05},
        "finalists": {"n_documents": 0, "candidates": [{"id": 1}]},
        "by_proposer": {"gradient": LEDGER | {"gain_per_million_tokens": 8.5}},
    },
    "language_model": {
        "calls": 1, "prompt_tokens": 3, "reply_tokens": 2,
        "searches": {},
        "dialogues": [{"why": "A reply", "outcome": "It failed", "prompt": EVIL, "reply": EVIL}],
    },
    "splits": {"report": "a" * 64},
    "warnings": [EVIL],
    "model": {"parameters": 90, "dense_parameters": 100, "bytes": 360},
    "speed": [{"workload": "reading 1 x 8 tokens", "n_tokens": 8, "seconds": 0.1, "dense_seconds": 0.2}],
    "environment": {
        "overrides": [], "python": "3.11", "packages": {"torch": "2.13"}, "platform": "somewhere", "n_cpus": 2, "n_threads": 1,
        "gpus": [], "commit": None,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def page():
    pictures = [
        allocation_picture({"winner": WINNER, "uniform": UNIFORM}, GRID),
        width_picture(WINNER, GRID),
        progress_picture(ARCHIVE, {}, "KL (nats per token)"),
        front_picture(ARCHIVE[:2], ARCHIVE[:2], WINNER),
    ]
    return report_page(REPORT, pictures, "python -m selfprune seed=3")


class Reading(HTMLParser):
    """The cells of every table, the ids, and what would be fetched."""

    def __init__(self):
        super().__init__()
        self.tables, self.ids, self.fetched, self.texts, self.tags = {}, [], [], [], []
        self._table, self._in_cell = None, False

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.tags.append(tag)
        self.ids += [known["id"]] if "id" in known else []
        self.fetched += [value for key, value in attributes if key in ("src", "href", "action")]
        if tag == "table":
            self._table = self.tables.setdefault(known["id"], [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.texts.append(data)
        if self._in_cell:
            self._table[-1][-1] += data


@pytest.fixture(scope="module")
def read(page):
    reading = Reading()
    reading.feed(page)
    return reading


def test_the_page_fetches_nothing_and_stays_small(page, read):
    assert read.fetched == []
    assert "default-src 'none'" in page
    assert len(page.encode()) <= 6e6


def test_the_table_comes_first_with_quality_size_and_speed(read):
    header, *rows = read.tables["table"]
    winner = dict(zip(header, rows[-1], strict=True))
    assert winner | {"": "winner", "KL": "0.0512", "sparsity": "50.00%", "parameters": "90", "tokens/s reading": "80"} == winner
    dense = dict(zip(header, rows[0], strict=True))
    assert (dense["parameters"], dense["tokens/s reading"]) == ("100", "40")
    assert dict(zip(header, rows[1], strict=True))["parameters"] == ""
    assert next(iter(read.tables)) == "table"


def test_every_picture_has_its_numbers_as_a_table(read):
    assert read.tables["allocation-table"][0] == ["unit", "winner", "uniform"]
    assert ["layers.1.self_attn", "100.0%", "50.0%"] in read.tables["allocation-table"]
    assert ["layers.0.mlp", "8", "6"] in read.tables["widths-table"]
    assert read.tables["progress-table"][1:] == [
        ["main", "1", "gradient", "200", "0.05", "8"],
        ["random", "2", "random", "100", "0.7", "8"],
    ]
    assert read.tables["front-table"][1] == ["0", "uniform", "0.9", "1.1111"]
    assert "python -m selfprune seed=3" in read.texts


def test_text_of_others_is_text_and_nothing_else(page, read):
    assert page.count("<script") == 2
    assert EVIL in read.texts
    assert "b" not in read.tags
    figures = json.loads(re.search(r"const figures = (\{.*\});", page).group(1))
    assert set(figures) == {"allocation", "widths", "progress", "front"}


def test_kinds_that_end_alike_have_rows_of_their_own():
    kinds = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    units = [Unit(f"h.{block}.{kind}", block, kind, 10) for block in range(2) for kind in kinds]
    allocation = {unit.name: i for i, unit in enumerate(units)}
    (trace,) = allocation_picture({"winner": allocation}, LevelGrid.with_constant_step(units, 0.1)).figure.data
    assert list(trace.y) == ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    assert [list(row) for row in trace.z] == [[0.0, 0.4], [0.1, 0.5], [0.2, 0.6], [0.3, 0.7]]


@pytest.fixture
def journal(tmp_path):
    """Gradients at the uniform allocation, and other records."""
    name_of = [unit.name for unit in UNITS]
    record = {
        "gradients": digest(UNIFORM, GRID),
        "windows": [0],
        "restoring": {name: 0.1 * (i + 1) for i, name in enumerate(name_of)},
        "removing": {name: 0.2 * (i + 1) for i, name in enumerate(name_of)},
        "seconds": 1.0,
    }
    lines = [{"search": "main", "candidate": 0, "window_scores": [0.1]}, {**record, "restoring": {}}, record]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "evaluations.jsonl"


def test_changes_are_foretold_by_the_levels_that_go_and_return(journal):
    (seen,) = read_moves(journal).values()
    # levels are one item apart: two of the second unit return, and two of the third go
    assert seen.foretold(UNIFORM, WINNER, GRID) == pytest.approx(0.6 * 2 - 0.2 * 2)
    child = replace(ARCHIVE[1], proposal=replace(ARCHIVE[1].proposal, parents=(0,)))
    picture = foretold_picture(read_moves(journal), [ARCHIVE[0], child], GRID)
    assert picture.rows == [["1", "gradient", "8", "0.8", "-0.85"]]
    assert foretold_picture(read_moves(journal), ARCHIVE, GRID) is None
    assert foretold_picture({}, [ARCHIVE[0], child], GRID) is None


def test_costs_are_compared_for_as_many_weights(journal):
    picture = cost_picture(read_moves(journal), WINNER, GRID)
    costs = {name: float(cost) for name, cost in picture.rows}
    # a level is one group of heads, of ten weights, or one channel, of six
    assert costs["layers.0.self_attn"] / costs["layers.0.mlp"] == pytest.approx((0.2 / 10) / (0.4 / 6), rel=1e-3)
    assert "at the last allocation whose gradients were taken" in picture.text
    assert "at the winner" in cost_picture(read_moves(journal), UNIFORM, GRID).text
    assert cost_picture({}, WINNER, GRID) is None


def test_a_journal_without_gradients_or_without_a_file_holds_no_moves(tmp_path):
    assert read_moves(tmp_path / "nowhere.jsonl") == {}
    (tmp_path / "evaluations.jsonl").write_text('{"search": "main", "candidate": 0}\n')
    assert read_moves(tmp_path / "evaluations.jsonl") == {}


def test_an_environment_of_an_earlier_version_is_shown_as_far_as_it_goes():
    bare = {name: REPORT["environment"][name] for name in ("overrides", "python", "packages")}
    reading = Reading()
    reading.feed(report_page(REPORT | {"environment": bare}, [], "python -m selfprune"))
    assert ["python", "3.11"] in reading.tables["environment"]
    assert ["commit", ""] in reading.tables["environment"]


def test_scores_that_differ_by_much_have_an_axis_of_round_numbers():
    axis = progress_picture(ARCHIVE, {}, "KL").figure.layout.yaxis
    assert axis.type == "log"
    assert {"0.05", "0.1", "0.5", "1"} <= set(axis.ticktext)
    near = [candidate(0, UNIFORM, "uniform", 0.9), candidate(1, WINNER, "gradient", 0.8, operator="step", gain=0.1)]
    assert progress_picture(near, {}, "KL").figure.layout.yaxis.type == "linear"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_every_picture_without_an_error(page, tmp_path, width):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium")
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},2000",
        "--dump-dom",
        f"file://{tmp_path / 'report.html'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    dom = done.stdout.replace("\n", " ")
    for key in ("allocation", "widths", "progress", "front"):
        assert re.search(rf'id="{key}"[^>]*data-drawn="yes"', dom), key
    assert dom.count('class="main-svg"') >= 4
