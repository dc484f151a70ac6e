"""What every proposer must do. Each file of `proposers/` is found; PROPOSERS names those with options of their own."""

import json
import math
import random
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from analytic_oracle import AnalyticOracle
from hypothesis import given, settings
from hypothesis import strategies as st

from selfprune.allocations.archive import Archive
from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.configs.methods import find_methods
from selfprune.errors import ConfigError
from selfprune.language_models.base import Reply
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.closed_forms.alphapruning import AlphaPruning, TailExponent, TailStart
from selfprune.proposers.closed_forms.atp import ATP
from selfprune.proposers.closed_forms.block_influence import BlockInfluence
from selfprune.proposers.closed_forms.dlp import MedianMetric
from selfprune.proposers.closed_forms.flap_global import StandardisedMetric
from selfprune.proposers.closed_forms.owl import OutlierRatio
from selfprune.proposers.closed_forms.sensitivity import Sensitivity
from selfprune.proposers.closed_forms.stored import Stored
from selfprune.proposers.closed_forms.uniform import Uniform
from selfprune.proposers.prompted.self_pruner import SelfPruner
from selfprune.proposers.prompted.self_pruner_paper import SelfPrunerPaper
from selfprune.proposers.searches.dynamic_programme import DynamicProgramme
from selfprune.proposers.searches.evolutionary import Evolutionary
from selfprune.proposers.searches.optuna_sampler import OptunaSampler
from selfprune.proposers.searches.portfolio import Portfolio
from selfprune.proposers.searches.random import Random, draw_offsets
from selfprune.proposers.searches.surrogate import Surrogate
from selfprune.statistics.input_fluctuation import Metric

SIZES = {"attn.q": 640, "attn.k": 160, "mlp.up": 1500, "mlp.down": 1501}


def stored():
    """The winner of a run of the units of `make_space`; the folder is read at once and can go."""
    allocation = {f"layers.{b}.{kind}": n * (2 + b) // 5 for b in range(3) for kind, n in SIZES.items()}
    with tempfile.TemporaryDirectory() as folder:
        Archive(Path(folder, "archive.jsonl")).extend(
            [Candidate(0, "main", Proposal(allocation, "r"), State.COMPLETE, 0.5, 8, 9)]
        )
        Path(folder, "report.json").write_text(json.dumps({"search": {"winner": {"id": 0}}}))
        return Stored(folder)


PROPOSERS = {
    "alphapruning_middle": AlphaPruning(TailStart.MIDDLE),
    "atp_flat": ATP(slope=0.0),
    "stored": stored(),
    "optuna_cma_es": OptunaSampler("CMA_ES"),
    "evolutionary_swaps": Evolutionary(groups=["UNIT"], max_shift=0.0, crossover_rate=0.0, perturb_rate=0.0),
    "dynamic_programme": DynamicProgramme(radii=[0.05, 0.1, 0.4]),
    "surrogate": Surrogate(n_children=32),
    "self_pruner_paper": SelfPrunerPaper(population=4, n_crossovers=2, n_mutations=2),
    "portfolio": Portfolio({"sensitivity": Sensitivity(), "evolutionary": Evolutionary(), "self_pruner": SelfPruner()}),
}
PROPOSERS |= {name: method() for name, method in find_methods("proposer").items() if name not in PROPOSERS}
NAMES = {
    "alphapruning_middle": {"alphapruning"},
    "atp_flat": {"atp"},
    "optuna_cma_es": {"optuna_sampler"},
    "evolutionary_swaps": {"evolutionary"},
    "portfolio": {"sensitivity", "evolutionary", "self_pruner"},
}


class Draws:
    """A language model that answers with random numbers, readable or not, as its seed has it."""

    name = "draws"

    def complete(self, prompt, schema, n, seed):
        return [Reply(self._text(random.Random(f"{seed}/{i}"), schema), None, 1, 1) for i in range(n)]

    def _text(self, rng, schema):
        if rng.random() < 0.2:
            return "I would rather not."
        percents = [rng.randint(30, 90) for _ in range(12)]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if "moves" in schema["properties"]:
            ends = [f"{rng.randrange(3)} {rng.choice(['q', 'k', 'up', 'down'])}" for _ in range(2)]
            return f'{{"moves": [{{"from": "{ends[0]}", "to": "{ends[1]}", "percent": {rng.randint(1, 30)}}}]}}'
        return f'{{"offset": {{"q": {percents[0] - 60}, "up": {percents[1] - 60}}}, "first": {percents[2] - 60}}}'

    def score(self, prompt, options):
        return [Reply(option, random.Random(option).uniform(-9, 0), 1, 1) for option in options]


MEASURED = {
    OutlierRatio(5.0): {0: 0.004, 1: 0.011, 2: 0.006},
    TailExponent(TailStart.PEAK): {0: 3.1, 1: 2.2, 2: 5.0},
    TailExponent(TailStart.MIDDLE): {0: 3.1, 1: math.nan, 2: 5.0},
    BlockInfluence(): {0: 0.4, 1: 0.1, 2: math.nan},
    MedianMetric(): {0: 0.2, 1: 0.0, 2: 0.9},
}


def measured_items(units):
    """What is measured of items, by their places."""
    return {StandardisedMetric(Metric.WIFV): {u.name: [math.sin(u.block + i) for i in range(u.n_items)] for u in units}}


def make_space(sparsity=0.6, pattern=False, rises=None):
    units = [Unit(f"layers.{b}.{kind}", b, kind, n) for b in range(3) for kind, n in SIZES.items()]
    grid = LevelGrid.with_single_level(units, 0.5) if pattern else LevelGrid.with_constant_step(units, 0.05)
    rises = {unit.name: 0.1 + unit.block + i / 10 for i, unit in enumerate(units)} if rises is None else rises
    n_target = math.ceil(sparsity * grid.n_weights())
    target = Target.in_weights(grid, n_target)
    return SearchSpace(grid, target, rises, MEASURED, AnalyticOracle.of(grid), measured_items(units))


def assert_on_budget(proposal, space):
    space.grid.check(proposal.allocation)
    surplus = space.grid.n_removed_weights(proposal.allocation) - space.target.n_weights
    steps = [space.grid.step_weights(u) for u in space.grid.units if proposal.allocation[u.name] > 0]
    assert 0 <= surplus < min(steps, default=1)


def fates(proposals, first_id, rng):
    """What a race could make of the proposals; the best of those that ended COMPLETE may take the incumbent's place."""
    candidates: list[Candidate] = []
    for i, proposal in enumerate(proposals):
        state = State.FAILED if proposal.allocation is None else rng.choice(list(State))
        score = None if state is State.FAILED else rng.uniform(0.1, 2.0)
        candidates.append(Candidate(first_id + i, "main", proposal, state, score, 4, 64, reason="" if score else "broken"))
    finished = [c for c in candidates if c.state is State.COMPLETE]
    if finished and rng.random() < 0.7:
        leader = min(finished, key=lambda c: c.score)
        candidates[candidates.index(leader)] = replace(leader, gain=rng.uniform(0.0, 0.1))
    return candidates


def converse(settings_, space, seed, n_rounds=6, n=5):
    """The proposals of a few rounds, each told of before the next."""
    proposer, fate = settings_.build(space, seed, Draws()), random.Random(0)
    proposals = []
    for _ in range(n_rounds):
        asked = proposer.ask(n)
        assert len(asked) <= n
        proposer.tell(fates(asked, len(proposals), fate))
        proposals += asked
    return proposals


@pytest.mark.parametrize("proposer", PROPOSERS)
class TestEveryProposer:
    def test_every_proposal_is_exactly_on_the_budget(self, proposer):
        for sparsity in (0.0, 0.001, 0.6, 0.99):
            space = make_space(sparsity)
            proposals = converse(PROPOSERS[proposer], space, seed=1)
            assert proposals or proposer == "evolutionary_swaps" or sparsity == 0.0, sparsity
            for proposal in proposals:
                if proposal.allocation is None:
                    assert proposal.failure
                else:
                    assert_on_budget(proposal, space)

    def test_a_grid_of_single_levels_is_served(self, proposer):
        space = make_space(0.3, pattern=True)
        for proposal in converse(PROPOSERS[proposer], space, seed=1):
            assert proposal.failure or assert_on_budget(proposal, space) is None

    def test_the_same_seed_and_fates_give_the_same_proposals_whatever_global_randomness(self, proposer):
        random.seed(1)
        first = converse(PROPOSERS[proposer], make_space(), 7)
        random.seed(2)
        state = random.getstate()
        assert converse(PROPOSERS[proposer], make_space(), 7) == first
        assert random.getstate() == state

    def test_at_most_n_are_proposed(self, proposer):
        for n in (0, 1, 13):
            assert len(PROPOSERS[proposer].build(make_space(), 0, Draws()).ask(n)) <= n

    def test_every_proposal_names_its_proposer_and_only_parents_that_it_heard_of(self, proposer):
        space, fate = make_space(), random.Random(0)
        working = PROPOSERS[proposer].build(space, 3, Draws())
        n_told = 0
        for _ in range(6):
            proposals = working.ask(4)
            for proposal in proposals:
                assert proposal.proposer in NAMES.get(proposer, {proposer})
                assert set(proposal.parents) <= set(range(n_told))
            working.tell(fates(proposals, n_told, fate))
            n_told += len(proposals)

    def test_fates_of_every_state_and_origin_can_be_told(self, proposer):
        space = make_space()
        working = PROPOSERS[proposer].build(space, 3, Draws())
        others = Random().build(space, 0, Draws()).ask(3)
        failure = Proposal(None, "self_pruner", failure="no JSON")
        states = [State.COMPLETE, State.STOPPED, State.FAILED, State.FAILED]
        candidates = [
            Candidate(i, "main", proposal, state, score)
            for i, (proposal, state, score) in enumerate(zip([*others, failure], states, [1.0, 2.0, None, None], strict=True))
        ]
        working.tell([])
        working.tell(candidates[3:])
        working.tell(candidates)
        for proposal in working.ask(5):
            assert proposal.failure or assert_on_budget(proposal, space) is None

    def test_what_was_told_is_not_changed(self, proposer):
        space = make_space()
        working = PROPOSERS[proposer].build(space, 3, Draws())
        candidates = fates(Random().build(space, 0, Draws()).ask(4), 0, random.Random(1))
        copies = [dict(c.allocation) for c in candidates]
        working.tell(candidates)
        working.ask(8)
        assert [c.allocation for c in candidates] == copies


@pytest.mark.parametrize(
    "proposer",
    [
        "random",
        "optuna_sampler",
        "optuna_cma_es",
        "evolutionary",
        "evolutionary_swaps",
        "evopress",
        "surrogate",
        "self_pruner",
        "self_pruner_paper",
        "portfolio",
    ],
)
def test_another_seed_gives_other_proposals(proposer):
    assert converse(PROPOSERS[proposer], make_space(), 7) != converse(PROPOSERS[proposer], make_space(), 8)


@pytest.mark.parametrize("proposer", ["uniform", "owl", "alphapruning", "block_influence", "dlp", "atp_flat", "stored"])
def test_a_closed_form_speaks_once(proposer):
    working = PROPOSERS[proposer].build(make_space(), 0, Draws())
    assert [len(working.ask(3)) for _ in range(3)] == [1, 0, 0]


def test_uniform_gives_every_unit_the_target_to_within_a_step():
    space = make_space(0.6)
    (proposal,) = Uniform().build(space, 0, Draws()).ask(1)
    for unit in space.grid.units:
        assert abs(proposal.allocation[unit.name] - 0.6 * unit.n_items) < space.grid.levels[unit.name].items[1]


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
def test_random_draws_stay_on_the_budget_for_any_seed(seed, sparsity):
    space = make_space(sparsity)
    for proposal in Random(max_spread=1.0).build(space, seed, Draws()).ask(3):
        assert_on_budget(proposal, space)


@pytest.mark.parametrize("part", ["block", "kind"])
def test_random_offsets_have_a_part_of_each_block_and_of_each_kind(part):
    units = [Unit(f"{b}.{k}", b, str(k), 10) for b in range(20) for k in range(20)]
    spreads = []
    for seed in range(40):
        offsets = draw_offsets(units, 0.2, random.Random(seed))
        groups = {getattr(unit, part): [] for unit in units}
        for unit in units:
            groups[getattr(unit, part)].append(offsets[unit.name])
        spreads.append(statistics.stdev(map(statistics.fmean, groups.values())))
    # The mean of twenty independent offsets would spread by 0.1 / √20 = 0.02 on average.
    assert statistics.fmean(spreads) == pytest.approx(0.1, abs=0.03)


def test_random_offsets_without_a_spread_are_zero():
    units = [Unit("a", 0, "w", 10), Unit("b", 1, "w", 10)]
    assert draw_offsets(units, 0.0, random.Random(0)) == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize("max_spread", [0.0, -0.1, 1.5, math.nan])
def test_random_refuses_a_spread_out_of_range(max_spread):
    with pytest.raises(ConfigError, match=r"must lie in \(0, 1\], got"):
        Random(max_spread)
