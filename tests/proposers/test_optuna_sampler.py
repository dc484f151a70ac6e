import math
import random
import runpy
import sys

import numpy as np
import pytest

from selfprune.allocations.candidate import Candidate, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.searches import optuna_sampler
from selfprune.proposers.searches.optuna_sampler import Algorithm, OptunaSampler

SIZES = {"q": 1000, "up": 3000}


def make_space(n_blocks=5, sparsity=0.6, step=0.001):
    units = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(n_blocks) for kind, n in SIZES.items()]
    grid = LevelGrid.with_constant_step(units, step)
    return SearchSpace(grid, Target.in_weights(grid, math.ceil(sparsity * grid.n_weights())))


SPACE = make_space()
GOAL = {unit.name: 0.6 + (0.08 if unit.kind == "up" else -0.1) + 0.04 * (unit.block - 2) for unit in SPACE.grid.units}


def distance(allocation):
    """Mean square of what lies between an allocation and the goal."""
    sparsities = SPACE.grid.sparsities(allocation)
    return sum((sparsities[name] - goal) ** 2 for name, goal in GOAL.items()) / len(GOAL)


def complete(proposals, first_id=0, score=distance):
    return [Candidate(first_id + i, "main", p, State.COMPLETE, score(p.allocation), 4, 64) for i, p in enumerate(proposals)]


def search(settings, n_rounds=10, seed=0, score=distance):
    proposer, candidates = settings.build(SPACE, seed, None), []
    for _ in range(n_rounds):
        candidates += complete(proposer.ask(8), len(candidates), score)
        proposer.tell(candidates[-8:])
    return candidates


@pytest.mark.parametrize("algorithm", Algorithm)
def test_it_comes_nearer_to_a_goal_than_draws_that_learn_nothing(algorithm):
    settings = OptunaSampler(algorithm)
    learnt, blind = search(settings), search(settings, score=lambda allocation: 1.0)
    assert len(learnt) == len(blind) == 80
    # The later half against the later half, so that luck in one draw does not decide.
    nearest = sorted(c.score for c in learnt[40:])[:8]
    assert sum(nearest) < 0.6 * sum(sorted(distance(c.allocation) for c in blind[40:])[:8])


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_candidate_is_new_and_named_after_its_algorithm(algorithm):
    candidates = search(OptunaSampler(algorithm))
    assert len({tuple(c.allocation.values()) for c in candidates}) == len(candidates)
    assert {(c.proposal.proposer, c.proposal.operator) for c in candidates} == {("optuna_sampler", algorithm.value.lower())}


@pytest.mark.parametrize("algorithm", Algorithm)
def test_told_again_what_was_recorded_it_stands_where_it_stood(algorithm):
    settings = OptunaSampler(algorithm)
    recorded = search(settings, n_rounds=6, seed=3)
    resumed = settings.build(SPACE, 3, None)
    for i in range(0, 40, 8):
        assert resumed.ask(8) == [c.proposal for c in recorded[i : i + 8]]
        resumed.tell(recorded[i : i + 8])
    assert resumed.ask(8) == [c.proposal for c in recorded[40:]]


@pytest.mark.parametrize("algorithm", Algorithm)
def test_neither_numpys_randomness_nor_optunas_logging_is_touched(algorithm):
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    first = search(OptunaSampler(algorithm), n_rounds=3)
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(2)
    assert search(OptunaSampler(algorithm), n_rounds=3) == first


def test_a_sparsity_is_the_sum_of_its_coefficients():
    proposer = OptunaSampler().build(make_space(3, 0.5), 0, None)
    names = proposer._coefficients()
    assert sorted(names) == ["first", "last", "offset.q", "offset.up", "slope.q", "slope.up"]
    values = {"offset.q": 0.05, "offset.up": -0.02, "slope.q": 0.1, "slope.up": 0.0, "first": -0.2, "last": 0.03}
    expected = {"0.q": 0.25, "1.q": 0.55, "2.q": 0.68, "0.up": 0.28, "1.up": 0.48, "2.up": 0.51}
    assert proposer._expand(values) == pytest.approx({f"layers.{name}": s for name, s in expected.items()})


def test_no_coefficient_exceeds_the_bound():
    proposer = OptunaSampler(max_offset=0.02).build(SPACE, 0, None)
    proposer.ask(20)
    assert 0.015 < max(abs(value) for trial in proposer.study.trials for value in trial.params.values()) <= 0.02


def test_a_single_block_has_offsets_of_kinds_alone():
    space = make_space(1)
    proposer = OptunaSampler().build(space, 0, None)
    assert proposer._coefficients() == ["offset.q", "offset.up"]
    for proposal in proposer.ask(5):
        assert space.grid.n_removed_weights(proposal.allocation) == space.target.n_weights


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("n_told", [0, 1])
def test_where_only_one_allocation_exists_it_ends(algorithm, n_told):
    space = make_space(sparsity=0.0)
    proposer = OptunaSampler(algorithm).build(space, 0, None)
    first = proposer.ask(4)
    assert [p.allocation for p in first] == [dict.fromkeys(GOAL, 0)]
    proposer.tell(complete(first)[:n_told])
    assert proposer.ask(4) == []


def test_stopped_candidates_count_with_their_score_and_failed_ones_fail():
    proposer = OptunaSampler().build(SPACE, 0, None)
    proposals = proposer.ask(4)
    states = [(State.COMPLETE, 0.5), (State.STOPPED, 0.9), (State.FAILED, None), (State.STOPPED, math.inf)]
    told = [Candidate(i, "main", p, *fate) for i, (p, fate) in enumerate(zip(proposals, states, strict=True))]
    proposer.tell(told)
    proposer.tell(told)
    assert [(trial.state.name, trial.value) for trial in proposer.study.trials] == [
        ("COMPLETE", 0.5),
        ("COMPLETE", 0.9),
        ("FAIL", None),
        ("FAIL", None),
    ]


def test_two_samplers_of_one_portfolio_do_not_take_each_others_scores():
    one, other = (OptunaSampler().build(SPACE, seed, None) for seed in (0, 1))
    proposals = other.ask(3)
    one.ask(3)
    for proposer in (one, other):
        proposer.tell(complete(proposals))
    assert [trial.state.name for trial in one.study.trials] == ["RUNNING"] * 3
    assert [trial.state.name for trial in other.study.trials] == ["COMPLETE"] * 3


def test_scores_that_never_come_do_not_stop_it():
    proposer, rng = OptunaSampler().build(SPACE, 0, None), random.Random(0)
    proposals = []
    for _ in range(6):
        asked = proposer.ask(4)
        proposer.tell([c for c in complete(asked) if rng.random() < 0.5])
        proposals += asked
    assert len(proposals) == 24


def test_the_library_is_not_imported_before_a_sampler_is_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    fresh = runpy.run_path(optuna_sampler.__file__)
    with pytest.raises(ImportError, match="optuna"):
        fresh["OptunaSampler"]().build(SPACE, 0, None)


@pytest.mark.parametrize("max_offset", [0.0, -0.1, 1.5, math.nan])
def test_settings_out_of_range_are_refused(max_offset):
    with pytest.raises(ConfigError, match=r"max_offset .* must lie in \(0, 1\], got"):
        OptunaSampler(max_offset=max_offset)
