import itertools
import math
import random
import statistics
import time

import numpy as np
import pytest

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.searches.evolutionary import Evolutionary
from selfprune.proposers.searches.surrogate import LinearModel, Surrogate

SIZES = {"q": 400, "k": 100, "up": 1000, "down": 1003}


def make_space(n_blocks=4):
    units = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(n_blocks) for kind, n in SIZES.items()]
    grid = LevelGrid.with_constant_step(units, 0.05)
    return SearchSpace(grid, Target.in_weights(grid, math.ceil(0.6 * grid.n_weights())))


SPACE = make_space()
UNIFORM = SPACE.project({unit.name: 0.6 for unit in SPACE.grid.units})


class Quadratic:
    """A score with its least value at sparsities that vary by block, by kind and by unit; off the diagonal by a few terms."""

    def __init__(self, space, seed):
        rng, self.units = random.Random(seed), space.grid.units
        blocks, kinds = ({group: rng.gauss(0, 0.12) for group in groups} for groups in (range(99), SIZES))
        self.best = [0.6 + blocks[unit.block] + kinds[unit.kind] + rng.gauss(0, 0.05) for unit in self.units]
        self.bend = [math.exp(rng.gauss(0, 0.5)) * unit.n_weights / space.grid.n_weights() for unit in self.units]

    def __call__(self, allocation):
        shifts = [allocation[unit.name] / unit.n_items - best for unit, best in zip(self.units, self.best, strict=True)]
        crossed = sum(a * b for a, b in itertools.pairwise(shifts)) / len(shifts)
        return 0.5 + 5 * (sum(bend * shift**2 for bend, shift in zip(self.bend, shifts, strict=True)) + 0.3 * crossed)


def search(settings, score, seed, n_rounds, space=SPACE, n=8, noise=0.01):
    """The true scores of the children of every round, half of which are stopped on fewer windows, where all scores are higher."""
    proposer, rng = settings.build(space, seed, None), random.Random(seed)
    uniform = space.project({unit.name: 0.6 for unit in space.grid.units})
    proposer.tell([Candidate(0, "main", Proposal(uniform, "uniform"), State.COMPLETE, score(uniform), 32)])
    n_told, rounds = 1, []
    for _ in range(n_rounds):
        children = proposer.ask(n)
        true = [score(child.allocation) for child in children]
        noisy = [value * math.exp(rng.gauss(0, noise)) for value in true]
        middle = statistics.median(noisy)
        proposer.tell(
            [
                Candidate(n_told + i, "main", child, State.COMPLETE, value, 32)
                if value <= middle
                else Candidate(n_told + i, "main", child, State.STOPPED, 1.5 * value, 8)
                for i, (child, value) in enumerate(zip(children, noisy, strict=True))
            ]
        )
        n_told += len(children)
        rounds.append(true)
    return rounds


def test_screened_children_are_better_than_unscreened_ones():
    n_wins, differences = 0, []
    for seed in range(6):
        score = Quadratic(SPACE, seed)
        screened, unscreened = (search(settings, score, seed, 8) for settings in (Surrogate(n_children=128), Evolutionary()))
        later = [statistics.fmean(value for scores in rounds[3:] for value in scores) for rounds in (screened, unscreened)]
        best = [min(value for scores in rounds for value in scores) for rounds in (screened, unscreened)]
        differences.append(best[0] - best[1])
        n_wins += later[0] < later[1]
    assert n_wins == 6
    assert statistics.fmean(differences) < 0
    assert sum(difference < 0 for difference in differences) >= 5


def told(n, space=SPACE, state=State.COMPLETE, score=None, n_windows=8, first=0):
    """Draws of the evolution, with the scores of a quadratic or one score."""
    quadratic = Quadratic(space, 0)
    return [
        Candidate(first + i, "main", child, state, quadratic(child.allocation) if score is None else score, n_windows)
        for i, child in enumerate(Evolutionary().build(space, 5, None).ask(n))
    ]


def unscreened(candidates, n=8):
    """What the evolution alone proposes."""
    proposer = Evolutionary().build(SPACE, 3, None)
    proposer.tell(candidates)
    return [child.allocation for child in proposer.ask(n)]


def screened(candidates, n=8, **settings):
    proposer = Surrogate(**settings).build(SPACE, 3, None)
    proposer.tell(candidates)
    return [child.allocation for child in proposer.ask(n)]


FAILED = Candidate(90, "main", Proposal(None, "x", failure="no reply"), State.FAILED)
BROKEN = Candidate(91, "main", Proposal(UNIFORM, "x"), State.FAILED, reason="the score is not finite")


@pytest.mark.parametrize(
    "candidates",
    [
        [],
        told(1),
        [*told(5), FAILED, BROKEN],
        told(20, score=0.7),
        told(20, score=math.nan),
        told(20, score=math.inf),
        told(20, score=0.0),
        told(20, state=State.FAILED),
        told(20, state=State.STOPPED),
        [Candidate(i, "main", Proposal(UNIFORM, "x"), State.COMPLETE, 0.5 + i / 100, 8) for i in range(20)],
        [Candidate(c.id, "main", c.proposal, c.state, c.score, 8 + c.id) for c in told(20)],
    ],
    ids=["nothing", "one", "few", "equal", "nan", "infinite", "zero", "failed", "no_incumbent", "one_allocation", "no_two_alike"],
)
def test_where_nothing_can_be_learnt_children_come_as_they_are_drawn(candidates):
    assert screened(candidates) == unscreened(candidates)


def test_it_screens_as_soon_as_enough_is_known():
    assert screened(told(8), n_first=9) == unscreened(told(8))
    assert screened(told(8), n_first=8) != unscreened(told(8))


def test_scores_that_break_do_not_spoil_the_others():
    noise = [FAILED, BROKEN, *told(3, score=math.nan, first=50), *told(3, score=math.inf, first=60)]
    proposals = screened([*told(20), *noise])
    assert proposals == screened(told(20))
    assert len(proposals) == 8


def test_nothing_that_was_proposed_or_told_is_proposed_again():
    # Two units of 20 levels leave 21 allocations on the budget.
    grid = LevelGrid.with_constant_step([Unit("a", 0, "w", 100), Unit("b", 1, "w", 100)], 0.05)
    space = SearchSpace(grid, Target.in_weights(grid, 100))
    proposer = Surrogate().build(space, 0, None)
    known = [Candidate(i, "main", Proposal({"a": 5 * i, "b": 100 - 5 * i}, "x"), State.COMPLETE, 9.0 - i, 8) for i in range(10)]
    proposer.tell(known)
    proposals = [proposal for _ in range(6) for proposal in proposer.ask(4)]
    genomes = [tuple(proposal.allocation.values()) for proposal in proposals]
    assert 5 <= len(genomes) == len(set(genomes)) <= 11
    assert not set(genomes) & {tuple(candidate.allocation.values()) for candidate in known}


def test_a_conversation_that_is_repeated_comes_out_the_same():
    runs = [search(Surrogate(), Quadratic(SPACE, 1), 4, 4) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != search(Surrogate(), Quadratic(SPACE, 1), 5, 4)


def test_only_the_newest_scores_are_remembered():
    older = [told(20, state=State.STOPPED, score=score) for score in (None, 9.0)]
    first, second = ([*scores, *told(30)[20:]] for scores in older)
    assert screened(first, memory=10) == screened(second, memory=10)
    assert screened(first, memory=30) != screened(second, memory=30)


def test_an_ask_takes_a_tenth_of_a_second():
    space = make_space(21)
    proposer = Surrogate().build(space, 0, None)
    proposer.tell(told(60, space))
    seconds = []
    for _ in range(3):
        began = time.process_time()
        assert len(proposer.ask(8)) == 8
        seconds.append(time.process_time() - began)
    # Thrice the time that an idle machine takes, lest a busy one fails.
    assert min(seconds) < 0.3


def line(n, rungs=(8,), noise=0.0, slope=(0.1, -0.03)):
    """Features, log scores and rungs of a linear score, with another level in every rung."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, len(slope)))
    of_rungs = np.array([rungs[i % len(rungs)] for i in range(n)])
    return features, features @ np.array(slope) + np.log(of_rungs) + noise * rng.normal(size=n), of_rungs


@pytest.mark.parametrize("rungs", [(8,), (8, 32, 64)])
def test_a_linear_score_is_learnt_whatever_the_levels_of_the_rungs(rungs):
    model = LinearModel.fit(*line(60, rungs))
    mean, deviation = model.predict(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert mean == pytest.approx([0.1, -0.03, 0.0], abs=1e-3)
    assert deviation[2] == 0.0
    assert deviation.max() < 1e-3


def test_the_posterior_is_that_of_the_textbook():
    features, logs, rungs = line(12, noise=0.1, slope=(0.1, -0.05, 0.08))
    model = LinearModel.fit(features, logs, rungs)
    # The prior's variance is σ²/λ, and that of the best known direction σ²/(s² + λ).
    centred = features - features.mean(axis=0)
    least, square = min(model.variances_K), np.linalg.eigvalsh(centred.T @ centred)[-1]
    ridge = least * square / (model.prior_variance - least)
    # The intercept is a fourth weight, with a flat prior.
    extended = np.hstack([features, np.ones((12, 1))])
    precision = extended.T @ extended + ridge * np.diag([1.0, 1.0, 1.0, 0.0])
    assert model.weights_P == pytest.approx(np.linalg.solve(precision, extended.T @ logs)[:3], rel=1e-6)
    covariance = model.prior_variance * ridge * np.linalg.inv(precision)[:3, :3]
    _, deviation = model.predict(np.eye(3))
    assert deviation == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-6)


def test_what_no_candidate_varied_is_as_uncertain_as_the_prior():
    features, logs, rungs = line(20, noise=0.05)
    model = LinearModel.fit(np.hstack([features, np.zeros((20, 1))]), logs, rungs)
    mean, deviation = model.predict(np.array([[0.0, 0.0, 2.0], [1.0, 0.0, 0.0]]))
    assert mean[0] == pytest.approx(0.0)
    assert deviation[0] == pytest.approx(2 * math.sqrt(model.prior_variance))
    assert deviation[1] < deviation[0] / 4


def test_noise_alone_is_shrunk_towards_nothing():
    rng = np.random.default_rng(1)
    features, logs = rng.normal(size=(40, 10)), 0.1 * rng.normal(size=40)
    model = LinearModel.fit(features, logs, np.full(40, 8))
    least_squares = np.linalg.lstsq(features - features.mean(axis=0), logs - logs.mean(), rcond=None)[0]
    assert np.abs(model.weights_P).max() < np.abs(least_squares).max() / 2


def test_one_broken_score_does_not_outweigh_the_others():
    features, logs, rungs = line(40, noise=0.01)
    sane = LinearModel.fit(features, logs, rungs)
    logs[7] = 30.0
    model = LinearModel.fit(features, logs, rungs)
    assert model.weights_P == pytest.approx(sane.weights_P, abs=0.1)


@pytest.mark.parametrize(
    "changes",
    [{"n_children": 0}, {"n_first": 1}, {"memory": 7}, {"optimism": -0.1}, {"optimism": math.nan}],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=r"the surrogate needs .* got "):
        Surrogate(**changes)
