"""Rows that other processes measure: the same as those measured here, whatever becomes of the processes."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

import selfprune
from selfprune.runs.rows.aside import begin, measured_aside
from selfprune.search.search_config import PoolKind
from selfprune.search.workers.executors import start_processes

SOURCES = Path(selfprune.__file__).parents[1]
NAMES = ["a", "b", "c", "d"]


def measure(name):
    return {"name": name, "pid": os.getpid()}


def aside(n, measure, names, pool=PoolKind.PROCESSES):
    def start(n_others):
        return start_processes(n_others, pool, torch.device("cpu"), begin, (measure,))

    return measured_aside(n, start, measure, names)


def test_processes_take_turns_at_what_is_named_and_the_rest_is_measured_here():
    with aside(2, measure, NAMES[:3]) as measured:
        found = {name: measured(name) for name in NAMES[::-1]}
    assert [found[name]["name"] for name in NAMES] == NAMES
    is_here = {name: found[name]["pid"] == os.getpid() for name in NAMES}
    assert is_here == {"a": True, "b": False, "c": True, "d": True}


def test_actors_of_ray_take_their_turns_too(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SOURCES), os.environ.get("PYTHONPATH", "")]))

    def look(name):
        return {"name": name, "pid": os.getpid()}

    with aside(2, look, NAMES, PoolKind.RAY) as measured:
        found = [measured(name) for name in NAMES]
    assert [one["name"] for one in found] == NAMES
    assert [one["pid"] == os.getpid() for one in found] == [True, False, True, False]


@pytest.mark.parametrize(("n", "names"), [(1, NAMES), (4, [])])
def test_without_other_processes_all_is_measured_here(n, names):
    with aside(n, measure, names) as measured:
        assert {measured(name)["pid"] for name in NAMES} == {os.getpid()}


def test_what_a_process_did_not_live_to_measure_is_measured_here():
    here = os.getpid()

    def die_elsewhere(name):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(name)

    with aside(2, die_elsewhere, NAMES) as measured:
        assert [measured(name)["pid"] for name in NAMES] == [here] * 4


def test_an_error_elsewhere_is_raised_here_and_what_still_works_is_ended():
    def fail(name):
        if name == "b":
            raise ValueError("a mistake")
        if name != "a":
            time.sleep(60)
        return {}

    began = time.monotonic()
    with pytest.raises(ValueError, match="a mistake"), aside(4, fail, NAMES) as measured:
        measured("b")
    assert time.monotonic() - began < 30
