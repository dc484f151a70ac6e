import json
import math

import pytest

from selfprune.allocations.archive import Archive
from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.closed_forms.stored import Stored

SIZES = {"q": 1000, "up": 3000}
UNITS = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(3) for kind, n in SIZES.items()]
GRID = LevelGrid.with_constant_step(UNITS, 0.01)
WISHES = {unit.name: 0.4 + 0.1 * unit.block for unit in UNITS}
AT_HALF = SearchSpace(GRID, Target.in_weights(GRID, 6000)).project(WISHES)


def finished_run(folder, allocation=AT_HALF, winner=1):
    folder.mkdir()
    failed = Candidate(0, "main", Proposal(None, "self_pruner", failure="no reply"), State.FAILED, reason="no reply")
    Archive(folder / "archive.jsonl").extend([failed, Candidate(1, "main", Proposal(allocation, "r"), State.COMPLETE, 0.5, 8, 9)])
    (folder / "report.json").write_text(json.dumps({"search": {"winner": {"id": winner}}}))
    return str(folder)


def ask(folder, space):
    (proposal,) = Stored(folder).build(space, 0, None).ask(9)
    space.grid.check(proposal.allocation)
    return proposal


def test_at_its_own_budget_the_winner_comes_back(tmp_path):
    proposal = ask(finished_run(tmp_path / "run"), SearchSpace(GRID, Target.in_weights(GRID, 6000)))
    assert (proposal.allocation, proposal.proposer) == (AT_HALF, "stored")


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.65])
def test_at_another_budget_all_sparsities_are_shifted_alike(sparsity, tmp_path):
    space = SearchSpace(GRID, Target.in_weights(GRID, math.ceil(sparsity * GRID.n_weights())))
    proposal = ask(finished_run(tmp_path / "run"), space)
    assert 0 <= GRID.n_removed_weights(proposal.allocation) - space.target.n_weights < 10
    assert GRID.sparsities(proposal.allocation) == pytest.approx(
        {name: wish + sparsity - 0.5 for name, wish in WISHES.items()}, abs=0.01
    )


def test_the_grid_of_the_earlier_run_may_be_another(tmp_path):
    fine = LevelGrid.with_constant_step(UNITS, 0.003)
    allocation = SearchSpace(fine, Target.in_weights(fine, 6000)).project(WISHES)
    proposal = ask(finished_run(tmp_path / "run", allocation), SearchSpace(GRID, Target.in_weights(GRID, 6000)))
    assert GRID.sparsities(proposal.allocation) == pytest.approx(fine.sparsities(allocation), abs=0.011)


def test_the_folder_is_read_when_the_config_is_made(tmp_path):
    stored = Stored(finished_run(tmp_path / "run"))
    (tmp_path / "run" / "archive.jsonl").unlink()
    assert stored.sparsities(SearchSpace(GRID, Target.in_weights(GRID, 6000))) == GRID.sparsities(AT_HALF)


@pytest.mark.parametrize(
    "allocation",
    [
        {name: 10 for name in list(AT_HALF)[1:]},
        AT_HALF | {"other": 1},
        AT_HALF | {"layers.0.q": 1001},
    ],
    ids=["fewer", "more", "larger"],
)
def test_a_run_with_other_units_is_refused(allocation, tmp_path):
    stored = Stored(finished_run(tmp_path / "run", allocation))
    with pytest.raises(ConfigError, match=r"run belongs to another model: it must name the 6 units of this one, got \d units"):
        stored.build(SearchSpace(GRID, Target.in_weights(GRID, 6000)), 0, None)


@pytest.mark.parametrize("missing", ["run", "report.json", "archive.jsonl"])
def test_a_folder_without_a_finished_run_is_refused(missing, tmp_path):
    folder = tmp_path / "run"
    if missing != "run":
        finished_run(folder)
        (folder / missing).unlink()
    with pytest.raises(ConfigError, match=r"run_folder of the stored proposer must be the folder of a finished run, got .*run,"):
        Stored(str(folder))


@pytest.mark.parametrize("winner", [7, None, "1", -1, True, 1.0, 0])
def test_a_report_that_names_no_candidate_is_refused(winner, tmp_path):
    with pytest.raises(ConfigError, match=r"which tells no winner: .*report\.json"):
        Stored(finished_run(tmp_path / "run", winner=winner))


def test_an_archive_with_an_impossible_line_is_refused_by_name(tmp_path):
    folder = finished_run(tmp_path / "run", AT_HALF | {"layers.0.q": -1})
    with pytest.raises(ConfigError, match=r"archive\.jsonl, line 2, .*allocation\.layers\.0\.q must be greater"):
        Stored(folder)


@pytest.mark.parametrize("report", ["", "[]", "{}", '{"search": null}'])
def test_a_report_of_another_form_is_refused(report, tmp_path):
    folder = finished_run(tmp_path / "run")
    (tmp_path / "run" / "report.json").write_text(report)
    with pytest.raises(ConfigError, match=r"which tells no winner: .*report\.json cannot be read back"):
        Stored(folder)
