"""Sweeps without their runs: which jobs there are, what is recorded of each, and what is left when one is given again."""

import json
import os
import socket
import subprocess
import sys

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from selfprune.__main__ import main
from selfprune.configs.sweep_records import Job, JobState, Sweep
from selfprune.errors import ConfigError, InUseError, ModelError
from selfprune.runs.run_folder import config_content


@pytest.fixture
def sweeping(monkeypatch, tmp_path, capsys):
    """Gives a command line to a selfprune whose runs are a function; returns the exit code and what was told."""
    monkeypatch.chdir(tmp_path)

    def give(work, *arguments):
        monkeypatch.setattr("selfprune.runs.composed_run.run_composed", work)
        monkeypatch.setattr(sys, "argv", ["selfprune", *arguments])
        try:
            code = main()
        finally:
            GlobalHydra.instance().clear()
        return code, " ".join(capsys.readouterr().err.split())

    return give


def begun(composed, overrides, job):
    """A run that makes its folder and no more."""
    folder = job.own_folder(config_content(composed))
    job.works_in(folder)
    folder.mkdir(exist_ok=True)


def known(tmp_path):
    (folder,) = (tmp_path / "runs").iterdir()
    sweep = Sweep.read(folder)
    return {job.name(sweep.varied): job for job in sweep.known()}


def test_a_sweep_and_its_jobs_have_folders_named_after_what_they_are_asked_for(sweeping, tmp_path):
    for _ in range(2):
        assert sweeping(begun, "-m", "seed=${hydra:job.num},7", "pruner=wanda,ria")[0] == 0
    assert sweeping(begun, "pruner=ria,wanda", "-m", "seed=7,${hydra:job.num}")[0] == 0
    (sweep,) = (tmp_path / "runs").iterdir()
    assert (sweep / "multirun.yaml").is_file()
    names = sorted(path.name.rpartition("-")[0] for path in sweep.iterdir() if path.is_dir() and path.name != "jobs")
    assert [name for name in names if "seed=7" in name] == ["seed=7,pruner=ria", "seed=7,pruner=wanda"]
    assert sweeping(begun, "-m", "seed=7,8", "pruner=wanda,ria")[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_sweep_of_its_own_folder_refuses_another_one(sweeping, tmp_path):
    assert sweeping(begun, "-m", "seed=0,1", "hydra.sweep.dir=mine")[0] == 0
    code, told = sweeping(begun, "-m", "seed=0,2", "hydra.sweep.dir=mine")
    assert code == 2
    assert "the folder mine belongs to another sweep, which was begun as seed=0,1 hydra.sweep.dir=mine -m" in told
    (tmp_path / "mine/sweep.json").write_text("{}")
    code, told = sweeping(begun, "-m", "seed=0,1", "hydra.sweep.dir=mine")
    assert code == 2
    assert "mine/sweep.json cannot be read back" in told


def test_a_mistake_of_one_job_is_told_and_recorded_and_the_others_go_on(sweeping, tmp_path):
    def work(composed, overrides, job):
        begun(composed, overrides, job)
        if composed.seed == 1:
            raise ModelError("seed 1 has no model; give another")

    code, told = sweeping(work, "-m", "seed=0,1,2")
    assert code == 2
    assert told.count("seed 1 has no model") == 1
    assert "3 jobs: 2 done, 1 failed" in told
    assert "--retry-failed`, works on those that are not done" in told
    jobs = known(tmp_path)
    assert {name: job.state for name, job in jobs.items()} == {
        "seed=0": JobState.DONE,
        "seed=1": JobState.FAILED,
        "seed=2": JobState.DONE,
    }
    assert jobs["seed=1"].paragraph == "seed 1 has no model; give another"
    assert sweeping(begun, "-m", "seed=0,1,2")[0] == 0
    assert known(tmp_path)["seed=1"] == Job(
        jobs["seed=1"].overrides, JobState.DONE, jobs["seed=1"].folder, "", socket.gethostname(), os.getpid()
    )


def test_a_defect_of_one_job_is_shown_where_it_is_and_the_others_go_on(sweeping, tmp_path):
    def work(composed, overrides, job):
        begun(composed, overrides, job)
        if composed.seed == 0:
            raise RuntimeError("a defect")

    code, told = sweeping(work, "-m", "seed=0,1")
    assert code == 2
    assert 'in work raise RuntimeError("a defect")' in told
    assert "seed=0: RuntimeError: a defect; runs/sweep_" in told
    assert known(tmp_path)["seed=1"].state is JobState.DONE


def test_an_interrupt_ends_a_whole_sweep_and_leaves_the_rest_waiting(sweeping, tmp_path):
    def work(composed, overrides, job):
        begun(composed, overrides, job)
        if composed.seed == 1:
            raise KeyboardInterrupt("runs/here")

    assert sweeping(work, "-m", "seed=0,1,2")[0] == 130
    assert [job.state for job in known(tmp_path).values()] == [JobState.DONE, JobState.STOPPED, JobState.WAITING]


def test_a_job_that_another_process_works_on_is_left_alone(sweeping, tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert sweeping(begun, "-m", "seed=0,1,2")[0] == 0
        (folder,) = (tmp_path / "runs").iterdir()
        sweep = Sweep.read(folder)
        path = next(path for path in (folder / "jobs").iterdir() if '"seed=0"' in path.read_text())
        path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "WORKING", "process": other.pid}))

        def work(composed, overrides, job):
            begun(composed, overrides, job)
            if composed.seed == 1:
                raise InUseError("the run folder is in use")

        code, told = sweeping(work, "-m", "seed=0,1,2")
        assert f"seed=0 is left alone: process {other.pid} works on it" in told
        assert "seed=1 is left alone: the run folder is in use" in told
        assert code == 0
        assert sweep.of(["seed=0"]).is_worked_on()
    finally:
        other.communicate(b"\n")
    assert not sweep.of(["seed=0"]).is_worked_on()
    assert sweeping(begun, "-m", "seed=0,1,2")[0] == 0
    assert sweep.of(["seed=0"]).state is JobState.DONE


def test_a_launcher_that_cannot_work_here_is_refused_before_anything_is_written(sweeping, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, told = sweeping(begun, "-m", "seed=0,1", "hydra/launcher=slurm")
    assert code == 2
    assert "hands jobs to Slurm, but its commands sbatch and srun are not on this machine" in told
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "joblib.yaml")
    code, told = sweeping(begun, "-m", "seed=0,1", "hydra/launcher=processes")
    assert code == 2
    assert "install it with pip install hydra-joblib-launcher" in told
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_is_none_of_a_sweep_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"is no folder of a sweep: it has no sweep\.json"):
        Sweep.read(tmp_path)
