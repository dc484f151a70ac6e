"""What a sweep's folder tells, and a sweep whose jobs have processes of their own."""

import json
import os
import socket
import subprocess
import sys

import pytest

from selfprune.configs.sweep_records import Job, JobState, Sweep
from selfprune.runs.sweeps.status import tell_sweep

NAME = "selfprune sweep"


@pytest.fixture
def sweep(tmp_path):
    jobs = [[f"seed={i}", "pruner=wanda"] for i in range(5)]
    sweep = Sweep(tmp_path / "sweep", "config", ["seed=0,1,2,3,4", "pruner=wanda", "-m"], jobs)
    sweep.begin()
    for i, state in enumerate((JobState.DONE, JobState.FAILED, JobState.WORKING, JobState.WORKING)):
        folder = tmp_path / "sweep" / str(i)
        sweep.record(Job(sweep.jobs[i], state, str(folder), "there is no model; give another" if i == 1 else ""))
    for path in (tmp_path / "sweep/jobs").iterdir():
        record = json.loads(path.read_text())
        if "seed=2" in record["overrides"]:
            path.write_text(json.dumps(record | {"process": 2**22 + 7}))
        if "seed=3" in record["overrides"]:
            path.write_text(json.dumps(record | {"host": "another.host"}))
    return sweep


def test_every_job_is_told_with_what_is_known_of_it(sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (sweep.folder / "3").mkdir()
    (sweep.folder / "3/archive.jsonl").write_text("")
    assert tell_sweep(NAME, [str(sweep.folder)]) == 1
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    told = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}
    assert told["seed=0"] == ["done", ""]
    assert told["seed=1"] == ["failed", "there is no model; give another"]
    assert told["seed=2"] == ["killed", "the process ended without a word; give the command again"]
    assert told["seed=3"] == ["working", f"process {os.getpid()} on another.host, last wrote 0 s ago"]
    assert told["seed=4"] == ["waiting", ""]


def test_the_command_is_given_again_for_what_is_left(sweep, monkeypatch):
    given = []

    def run(command, check):
        given.append(command)
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(subprocess, "run", run)
    assert tell_sweep(NAME, [str(sweep.folder), "--retry-failed"]) == 7
    assert given == [[sys.executable, "-m", "selfprune", *sweep.command]]


def test_wrong_arguments_are_told(sweep, tmp_path, capsys):
    for arguments, said in {
        (): "the following arguments are required: folder; write selfprune sweep FOLDER",
        (str(tmp_path),): "is no folder of a sweep: it has no sweep.json",
        (str(sweep.folder), "--again"): "unrecognized arguments: --again",
    }.items():
        assert tell_sweep(NAME, arguments) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    held = json.loads((sweep.folder / "sweep.json").read_text())
    (sweep.folder / "sweep.json").write_text(json.dumps(held | {"config_name": "train"}))
    assert tell_sweep(NAME, [str(sweep.folder)]) == 2
    assert "a sweep of train, which no command of this version has" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_jobs_in_processes_of_their_own_leave_the_same_records(python, tiny_model_folder, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "text.txt").write_text("The boats near the old soldiers tremble. " * 20)
    model = ["model=local", f"model.path={tiny_model_folder('llama')}", "data=files", "data.calibration=text.txt"]
    options = ["data.n_tokens_per_window=16", "data.n_calibration=2", "pruner=magnitude", "budget.sparsity=0.5,1.5"]
    where = ["output=pruned_${budget.sparsity}", "hydra/launcher=processes"]
    done = python("-m", "selfprune.prune", "-m", *model, *options, *where, folder=tmp_path)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2, said
    assert "budget.sparsity must lie above 0 and below 1, got 1.5" in said
    (folder,) = (tmp_path / "runs").iterdir()
    jobs = {job.name(["budget.sparsity"]): job for job in Sweep.read(folder).known()}
    assert jobs["budget.sparsity=0.5"].state is JobState.DONE
    assert jobs["budget.sparsity=0.5"].host == socket.gethostname()
    assert jobs["budget.sparsity=0.5"].process != os.getpid()
    assert jobs["budget.sparsity=1.5"].state is JobState.FAILED
    assert (tmp_path / "pruned_0.5/selfprune.json").is_file()
