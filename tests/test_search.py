import logging
import random

import pytest
import torch

from selfprune.allocation import LevelGrid
from selfprune.archive import Archive, read_archive
from selfprune.calibration import calibrate
from selfprune.candidate import Proposal, State
from selfprune.errors import ConfigError
from selfprune.evaluators.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.journal import Journal
from selfprune.language_models.scripted import ScriptedLanguageModel
from selfprune.level_store import LevelStore, rank_units
from selfprune.models import LoadedModel
from selfprune.proposers.base import FixedProposals, SearchSpace
from selfprune.proposers.evolutionary import Evolutionary
from selfprune.proposers.portfolio import Portfolio
from selfprune.proposers.random import Random
from selfprune.proposers.sensitivity import Sensitivity
from selfprune.proposers.uniform import Uniform
from selfprune.pruners.magnitude import Magnitude
from selfprune.racing import Ladder, Racer
from selfprune.search import MAX_IDLE_ROUNDS, Progress, SearchConfig, run_search
from selfprune.units import find_blocks, list_units

N_TOKENS = 8
LADDER = Ladder([1, 4], [2])
NOBODY = ScriptedLanguageModel.from_texts([])


@pytest.fixture(scope="module")
def bench(make_tiny_model):
    model = make_tiny_model("llama")
    loaded = LoadedModel(model, None, list_units(model), find_blocks(model)[1], torch.device("cpu"))
    windows_NT = torch.randint(0, 300, (4, N_TOKENS), generator=torch.Generator().manual_seed(0))
    grid = LevelGrid.with_constant_step(loaded.units, 0.05)
    store = LevelStore(loaded, grid, rank_units(loaded, grid.units, Magnitude(), calibrate(loaded, windows_NT, Magnitude(), 4)))
    return store, WindowEvaluator({"score": KLDivergence()}, model, loaded.blocks, windows_NT, 4, LADDER.n_windows, 10**6)


@pytest.fixture
def space(bench):
    grid = bench[0].grid
    return SearchSpace(grid, grid.n_weights() // 2, {unit.name: 1.0 + unit.block for unit in grid.units})


def config(max_tokens=10**9, **changes):
    changes = {"n_per_round": 4, "ladder": LADDER, "n_sensitivity_windows": 0, "batch_size": 4} | changes
    return SearchConfig(max_tokens, **changes)


@pytest.fixture
def search(bench, space, tmp_path):
    """Searches in a folder, and gives the candidates; the archive and the journal lie in it."""

    def run(proposer, settings, folder="run", **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        racer = Racer(*bench, LADDER, Journal(tmp_path / folder / "evaluations.jsonl"))
        archive = Archive(tmp_path / folder / "archive.jsonl")
        candidates = run_search("main", proposer, racer, archive, settings, **options)
        assert not archive.candidates or read_archive(tmp_path / folder / "archive.jsonl") == archive.candidates
        return candidates

    return run


def portfolio(space, seed):
    return Portfolio({"s": Sensitivity([2.0, 4.0]), "r": Random(), "e": Evolutionary()}).build(space, seed, NOBODY)


def uniform(space):
    return Uniform().build(space, 0, NOBODY).ask(1)[0]


def test_the_same_seed_gives_the_same_archive_byte_for_byte(search, space, tmp_path):
    for folder in ("first", "second"):
        search(portfolio(space, 3), config(max_candidates=25), folder, yardsticks=[uniform(space)])
    archives = [(tmp_path / folder / "archive.jsonl").read_bytes() for folder in ("first", "second")]
    assert archives[0] == archives[1]
    assert archives[0].count(b"\n") >= 25


def test_another_seed_gives_another_archive(search, space, tmp_path):
    for seed in (3, 4):
        search(portfolio(space, seed), config(max_candidates=9), f"seed{seed}")
    assert (tmp_path / "seed3" / "archive.jsonl").read_bytes() != (tmp_path / "seed4" / "archive.jsonl").read_bytes()


@pytest.mark.parametrize(("n_evaluations", "n_archived"), [(0, 0), (3, 0), (11, 5), (17, 9), (30, 13)])
def test_a_search_that_was_broken_off_gives_the_same_archive(n_evaluations, n_archived, search, space, tmp_path):
    whole = search(portfolio(space, 3), config(max_candidates=25), "whole", yardsticks=[uniform(space)])
    (tmp_path / "broken").mkdir()
    for name, n_lines in (("evaluations.jsonl", n_evaluations), ("archive.jsonl", n_archived)):
        lines = (tmp_path / "whole" / name).read_bytes().splitlines(keepends=True)
        (tmp_path / "broken" / name).write_bytes(b"".join(lines[:n_lines]) + lines[n_lines][:9])
    resumed = search(portfolio(space, 3), config(max_candidates=25), "broken", yardsticks=[uniform(space)])
    assert resumed == whole
    assert (tmp_path / "broken" / "archive.jsonl").read_bytes() == (tmp_path / "whole" / "archive.jsonl").read_bytes()


def test_yardsticks_come_first_and_are_scored_on_all_windows(search, space):
    wishes = [{unit.name: 0.5 + spread * (unit.block - 0.5) for unit in space.grid.units} for spread in (0.3, 0.0, -0.3)]
    yardsticks = [Proposal(space.project(wish), f"yardstick {i}") for i, wish in enumerate(wishes)]
    candidates = search(Random().build(space, 0, NOBODY), config(max_candidates=7), yardsticks=yardsticks)
    assert [c.proposal for c in candidates[:3]] == yardsticks
    assert {(c.state, c.n_windows) for c in candidates[:3]} == {(State.COMPLETE, 4)}
    assert {c.proposal.proposer for c in candidates[3:]} == {"random"}


def test_the_proposer_hears_of_every_candidate_in_order(search, space):
    class Listener:
        name = "listener"

        def __init__(self):
            self.random, self.heard = Random().build(space, 0, NOBODY), []

        def ask(self, n):
            return self.random.ask(n)

        def tell(self, candidates):
            self.heard += candidates

    listener = Listener()
    candidates = search(listener, config(max_candidates=9), yardsticks=[uniform(space)])
    assert listener.heard == candidates
    assert [c.id for c in candidates] == list(range(9))


def test_it_stops_at_the_first_round_that_reaches_the_tokens(search, space):
    # A round of four: each sees one window, two go on to three more.
    per_round = (4 * 1 + 2 * 3) * N_TOKENS
    for max_tokens, n_rounds in ((1, 1), (per_round, 1), (per_round + 1, 2), (3 * per_round, 3)):
        candidates = search(Random().build(space, 0, NOBODY), config(max_tokens), f"{max_tokens}")
        assert sum(c.n_tokens for c in candidates) == n_rounds * per_round
        assert len(candidates) == 4 * n_rounds


def test_it_stops_at_the_candidates(search, space):
    assert len(search(Random().build(space, 0, NOBODY), config(max_candidates=8))) == 8


def test_it_stops_at_the_seconds(search, space):
    assert search(Random().build(space, 0, NOBODY), config(max_seconds=0.0)) == []


def test_yardsticks_count_against_the_budget(search, space):
    candidates = search(Random().build(space, 0, NOBODY), config(4 * N_TOKENS), yardsticks=[uniform(space)])
    assert len(candidates) == 1


def test_it_ends_when_the_proposer_has_no_more_to_say(search, space):
    proposals = [uniform(space), *Random().build(space, 0, NOBODY).ask(4)]
    candidates = search(FixedProposals("fixed", proposals), config())
    assert [c.proposal for c in candidates] == proposals


def test_it_ends_after_idle_rounds(search):
    class Mute:
        name = "mute"

        def ask(self, n):
            return [Proposal(None, self.name, failure="no JSON object")] * n

        def tell(self, candidates):
            pass

    candidates = search(Mute(), config())
    assert len(candidates) == 4 * MAX_IDLE_ROUNDS
    assert {(c.state, c.reason, c.n_tokens) for c in candidates} == {(State.FAILED, "no JSON object", 0)}


def test_progress_is_told_after_every_round_and_logged(search, space, caplog):
    states = []
    with caplog.at_level(logging.INFO, logger="selfprune.search"):
        candidates = search(Random().build(space, 0, NOBODY), config(max_candidates=8), on_progress=states.append)
    assert [state.n_candidates for state in states] == [4, 8]
    assert states[-1].n_tokens == sum(c.n_tokens for c in candidates)
    assert states[-1].best_score == min(c.score for c in candidates if c.state is State.COMPLETE)
    assert len(caplog.records) == 2


def test_a_search_hears_only_of_its_own_candidates(bench, space, tmp_path):
    racer, archive = Racer(*bench, LADDER, Journal(tmp_path / "evaluations.jsonl")), Archive(tmp_path / "archive.jsonl")
    first = run_search("main", Random(1.0).build(space, 1, NOBODY), racer, archive, config(max_candidates=4))
    states: list[Progress] = []
    second = run_search(
        "random", Random(0.01).build(space, 0, NOBODY), racer, archive, config(max_candidates=4), (), states.append
    )
    scores = [min(c.score for c in group if c.state is State.COMPLETE) for group in (first, second)]
    assert scores[0] < scores[1] == states[-1].best_score
    assert [c.id for c in second] == [4, 5, 6, 7]
    assert {c.search for c in first} == {"main"}
    assert {c.search for c in second} == {"random"}


def test_the_global_generator_is_left_alone(search, space):
    random.seed(0)
    state, torch_state = random.getstate(), torch.get_rng_state()
    search(portfolio(space, 0), config(max_candidates=9))
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("n_per_round", 0),
        ("n_finalists", 0),
        ("batch_size", 0),
        ("level_fraction", 0.0),
        ("level_fraction", 1.5),
        ("max_sparsity", 0.0),
        ("max_sparsity", 1.1),
        ("n_sensitivity_windows", 3),
        ("prefix_cache_mb", -1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"search\.{name} .* got {value}"):
        SearchConfig(**{name: value})
