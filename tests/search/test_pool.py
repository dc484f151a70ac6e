"""Measurements by other processes are those of this one, whatever happens to the processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from calibrated import fill, mask_levels

from selfprune.allocations.level_grid import LevelGrid
from selfprune.errors import ConfigError, SelfpruneError
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.levels.built_levels import BuiltLevels, open_statistics
from selfprune.levels.levels_config import LevelsConfig
from selfprune.models.loading import LoadedModel
from selfprune.models.units import find_blocks, list_units
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.pruners.weights.sparsegpt import SparseGPT
from selfprune.search.bench import Bench
from selfprune.search.scoring import Scorer
from selfprune.search.search_config import PoolKind
from selfprune.search.workers.pooled_bench import open_bench
from selfprune.search.workers.workers import MAX_BROKEN
from selfprune.storage.journal import Journal

SOURCES = (Path(__file__).parents[2] / "src", Path(__file__).parent, Path(__file__).parents[1])
"""What actors import, too."""
WINDOWS_NT = torch.randint(0, 300, (7, 10), generator=torch.Generator().manual_seed(0))


def make_masks(loaded, grid, folder):
    return mask_levels(loaded, grid, WINDOWS_NT, Magnitude(), 4)


def make_built(loaded, grid, folder):
    kept = open_statistics(loaded, grid, SparseGPT(), WINDOWS_NT, 4, LevelsConfig(), folder)
    return fill(BuiltLevels(loaded, grid, SparseGPT(), kept, memory_bytes=10**9), WINDOWS_NT, SparseGPT(), 4)


@pytest.fixture(params=[make_masks, make_built], ids=["masks", "built"])
def made(request, make_tiny_model, tmp_path):
    model = make_tiny_model("llama")
    loaded = LoadedModel(model, None, list_units(model), find_blocks(model)[1], torch.device("cpu"))
    store = request.param(loaded, LevelGrid.with_constant_step(loaded.units, 0.25), tmp_path)
    return store, WindowEvaluator({"score": KLDivergence()}, model, loaded.blocks, WINDOWS_NT, 2)


@pytest.fixture
def pooled(made):
    bench = open_bench(*made, 2)
    yield bench
    bench.release()


@pytest.fixture
def on_ray(made, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, SOURCES), os.environ.get("PYTHONPATH", "")]))
    bench = open_bench(*made, 2, PoolKind.RAY)
    yield bench
    bench.release()


def allocations(grid, n=5):
    return [{u.name: grid.levels[u.name].items[(i + j) % 3] for j, u in enumerate(grid.units)} for i in range(n)]


def test_scores_and_falls_are_those_of_one_process_to_the_bit(made, pooled):
    alone, found = Bench(*made), allocations(made[0].grid)
    work = [(allocation, [0, 2, 3][: i + 1]) for i, allocation in enumerate(found[:3])] + [(found[3], range(7)), (found[4], [6])]
    expected = [alone.scores(*one) for one in work]
    falls = [alone.falls(found[2], found[0], [0, 1, 2]), alone.falls(found[1], found[0], [3])]
    alone.store.restore()
    pooled.expect_scores(work)
    pooled.expect_falls([(found[2], found[0])], [0, 1, 2])
    assert [pooled.scores(*one) for one in work] == expected
    assert [pooled.falls(found[2], found[0], [0, 1, 2]), pooled.falls(found[1], found[0], [3])] == falls
    # what nobody expected is measured as well, and again where it is asked again
    assert pooled.scores(*work[0]) == pooled.scores(*work[0]) == expected[0]
    assert pooled.parts == {}
    assert made[0].allocation == dict.fromkeys(made[0].allocation, 0)


def test_actors_of_ray_measure_the_same_to_the_bit_and_one_that_dies_is_replaced(made, on_ray):
    alone, found = Bench(*made), allocations(made[0].grid)
    work = [(allocation, [0, 2, 3][: i + 1]) for i, allocation in enumerate(found[:3])]
    expected, falls = [alone.scores(*one) for one in work], alone.falls(found[2], found[0], [0, 1, 2])
    alone.store.restore()
    on_ray.expect_scores(work)
    assert [on_ray.scores(*one) for one in work] == expected
    pid, work_again = on_ray.workers._executor.submit(os.getpid).result(), [(found[3], [0, 1]), *work]
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
    on_ray.expect_scores(work_again)
    assert [on_ray.scores(*one) for one in work_again][1:] == expected
    assert on_ray.falls(found[2], found[0], [0, 1, 2]) == falls


def test_an_error_of_an_actor_is_raised_here_and_actors_that_always_end_are_told(on_ray):
    with pytest.raises(KeyError):
        on_ray.scores({"no.unit": 1} | dict.fromkeys(list(on_ray.grid.levels)[1:], 0), [0])
    on_ray.workers.work = die
    with pytest.raises(SelfpruneError, match=f"the 2 processes of search.workers ended {MAX_BROKEN + 1} times before"):
        on_ray.scores(allocations(on_ray.grid)[0], [0])


def die(_):
    os._exit(9)


def test_a_ray_that_is_too_small_or_out_of_reach_is_told(made, monkeypatch):
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"search\.workers=999 asks Ray for as many CPUs, but it has \d+"):
        open_bench(*made, 999, PoolKind.RAY).scores(allocations(made[0].grid)[0], [0])
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"search\.pool=RAY found no Ray"):
        open_bench(*made, 2, PoolKind.RAY).scores(allocations(made[0].grid)[0], [0])


def test_ray_that_is_not_installed_is_told_with_its_extra(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"search\.pool=RAY needs the package ray.*selfprune\[cluster\]"):
        open_bench(*made, 2, PoolKind.RAY).scores(allocations(made[0].grid)[0], [0])


def test_the_windows_are_dealt_out_evenly(pooled):
    groups = []
    pooled.workers.ask = groups.extend
    first, second, third = allocations(pooled.grid, 3)
    pooled.expect_scores([(first, range(2)), (second, range(4)), (third, range(6))])
    assert [sum(len(task.arguments[1]) for task in group) for group in groups if group] == [6, 6]
    pooled.expect_scores([(first, range(7))])
    assert [len(task.arguments[1]) for group in groups[-3:] for task in group] == [4, 3]


def pids(pooled):
    return list(pooled.workers._executor._processes)


def test_a_process_that_is_killed_is_replaced_and_its_work_is_done_again(made, pooled):
    alone, found = Bench(*made), allocations(made[0].grid)
    expected = [alone.scores(allocation, [0, 1]) for allocation in found]
    alone.store.restore()
    assert pooled.scores(found[0], [0, 1]) == expected[0]
    before = pids(pooled)
    os.kill(before[0], signal.SIGKILL)
    # with work under way, whether or not its end was noticed yet
    pooled.expect_scores([(each, [0, 1]) for each in found])
    assert [pooled.scores(allocation, [0, 1]) for allocation in found] == expected
    until = time.monotonic() + 20
    while not pooled.workers._executor._broken and set(before) & set(pids(pooled)):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert [pooled.scores(allocation, [0, 1]) for allocation in found] == expected
    assert not set(before) & set(pids(pooled))


def test_processes_that_always_end_are_told_in_one_paragraph(pooled, monkeypatch):
    monkeypatch.setattr(pooled.evaluator, "evaluate", lambda *_: os._exit(9))
    with pytest.raises(SelfpruneError, match=f"the 2 processes of search.workers ended {MAX_BROKEN + 1} times before"):
        pooled.scores(allocations(pooled.grid)[0], [0])


def test_an_error_of_a_process_is_raised_here(pooled, monkeypatch):
    def fail(*_):
        raise ConfigError("a mistake")

    monkeypatch.setattr(pooled.evaluator, "evaluate", fail)
    with pytest.raises(ConfigError, match="a mistake"):
        pooled.scores(allocations(pooled.grid)[0], [0])


def test_what_is_recorded_is_not_measured_again(made, pooled, tmp_path):
    found = allocations(made[0].grid, 3)
    first = Scorer(pooled, Journal(tmp_path / "evaluations.jsonl"))
    scores = [first.score("main", i, allocation, [0, 1]) for i, allocation in enumerate(found[:2])]
    asked = []
    again = Scorer(pooled, Journal(tmp_path / "evaluations.jsonl"))
    pooled.workers.ask = asked.extend
    again.expect([(allocation, [0, 1]) for allocation in found])
    assert {task.key for group in asked for task in group} == {pooled._scoring(found[2], [0, 1]).key}
    assert [again.score("main", i, allocation, [0, 1]) for i, allocation in enumerate(found[:2])] == scores


def test_a_single_process_measures_here(made):
    assert type(open_bench(*made, 1)) is Bench


def test_several_processes_beside_a_gpu_are_refused(made):
    made[0].loaded = LoadedModel(made[0].loaded.model, None, made[0].loaded.units, made[0].loaded.blocks, torch.device("cuda:0"))
    with pytest.raises(ConfigError, match=r"search\.workers=2 forks processes, which goes on CPU and Unix alone"):
        open_bench(*made, 2)


PARENT = """
import os, time, torch
from selfprune.search.search_config import PoolKind
from selfprune.search.workers.executors import start_processes
from selfprune.search.workers.pooled_bench import _begin, measure
from selfprune.search.workers.workers import Task, Workers
class Store:
    def share(self, n): pass
class Stub:
    store = Store()
    def pid(self): return os.getpid()
start = lambda: start_processes(2, PoolKind.PROCESSES, torch.device("cpu"), _begin, (Stub(), 2))
workers = Workers(2, start, measure)
print(workers.result(Task(("a",), "pid", ())), *workers._executor._processes, flush=True)
time.sleep(60)
"""


def test_the_processes_end_with_their_parent_however_that_ends():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    children = {int(pid) for pid in parent.stdout.readline().split()}
    assert len(children) == 2
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 20
    while any(is_alive(pid) for pid in children):
        assert time.monotonic() < until
        time.sleep(0.05)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
