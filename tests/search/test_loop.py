import json
import logging
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibrated import mask_levels
from whole_search import run_search

from selfprune.allocations.archive import Archive, read_archive
from selfprune.allocations.candidate import Candidate, Proposal, State, best
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.configs.methods import find_methods
from selfprune.errors import ConfigError
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.language_models.base import Reply
from selfprune.language_models.scripted import ScriptedLanguageModel
from selfprune.models.loading import LoadedModel
from selfprune.models.units import find_blocks, list_units
from selfprune.proposers.base import FixedProposals, ProposerConfig, SearchSpace
from selfprune.proposers.closed_forms.alphapruning import AlphaPruning
from selfprune.proposers.closed_forms.atp import ATP
from selfprune.proposers.closed_forms.block_influence import LeastInfluence
from selfprune.proposers.closed_forms.dlp import DLP
from selfprune.proposers.closed_forms.flap_global import FLAPGlobal, StandardisedMetric
from selfprune.proposers.closed_forms.owl import OWL
from selfprune.proposers.closed_forms.sensitivity import Sensitivity
from selfprune.proposers.closed_forms.stored import Stored
from selfprune.proposers.closed_forms.uniform import Uniform
from selfprune.proposers.prompted.self_pruner import SelfPruner
from selfprune.proposers.prompted.self_pruner_paper import SelfPrunerPaper
from selfprune.proposers.searches.dynamic_programme import DynamicProgramme
from selfprune.proposers.searches.evolutionary import Evolutionary
from selfprune.proposers.searches.evopress import EvoPress
from selfprune.proposers.searches.gradient import Gradient
from selfprune.proposers.searches.optuna_sampler import OptunaSampler
from selfprune.proposers.searches.portfolio import Portfolio
from selfprune.proposers.searches.random import Random
from selfprune.proposers.searches.stepwise import Stepwise
from selfprune.proposers.searches.surrogate import Surrogate
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.search.bench import Bench
from selfprune.search.first_round_budget import check_first_round
from selfprune.search.gradient_values import FORWARD_PASSES, GradientValues
from selfprune.search.ladder import Ladder
from selfprune.search.loop import MAX_IDLE_ROUNDS, Search
from selfprune.search.racing import Racer
from selfprune.search.scoring import Scorer
from selfprune.search.search_config import SearchConfig
from selfprune.statistics.input_fluctuation import Metric
from selfprune.storage.journal import Journal

N_TOKENS = 8
N_WINDOWS = 4
LADDER = Ladder([1, 4], [2], grows=False)
GROWING = Ladder([1, 2, 4], [3, 2])
FRESH = Ladder([1, 2], [2], grows=False, fresh=True)
SINGLE = Ladder([2], [], grows=False, fresh=True)
NOBODY = ScriptedLanguageModel.from_texts([])


@pytest.fixture(scope="module")
def bench(make_tiny_model):
    model = make_tiny_model("llama")
    loaded = LoadedModel(model, None, list_units(model), find_blocks(model)[1], torch.device("cpu"))
    windows_NT = torch.randint(0, 300, (N_WINDOWS, N_TOKENS), generator=torch.Generator().manual_seed(0))
    grid = LevelGrid.with_constant_step(loaded.units, 0.05)
    store = mask_levels(loaded, grid, windows_NT, Magnitude(), 4)
    # Random logits are nearly flat; sharper ones make the candidates differ.
    model.lm_head.weight.mul_(50)
    return store, WindowEvaluator({"score": KLDivergence()}, model, loaded.blocks, windows_NT, 1, 10**6)


@pytest.fixture
def space(bench):
    grid = bench[0].grid
    rises, of_items = {u.name: 1.0 + u.block for u in grid.units}, {u.name: [1.0] * u.n_items for u in grid.units}
    measured = {StandardisedMetric(Metric.WIFV): of_items}
    return SearchSpace(grid, Target.in_weights(grid, grid.n_weights() // 2), rises, of_items=measured)


def config(max_tokens=10**9, **changes):
    changes = {"n_per_round": 4, "ladder": LADDER, "n_sensitivity_windows": 0, "batch_size": 4, "n_finalists": 1} | changes
    return SearchConfig(max_tokens, **changes)


@pytest.fixture
def search(bench, space, tmp_path):
    """Searches in a folder, and gives the candidates; the archive and the journal lie in it."""

    def run(proposer, settings, folder="run", **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        bench[0].restore()
        scorer = Scorer(Bench(*bench), Journal(tmp_path / folder / "evaluations.jsonl"))
        if isinstance(proposer, ProposerConfig):
            proposer = proposer.build(replace(space, move_values=GradientValues(scorer)), 3, NOBODY)
        archive = Archive(tmp_path / folder / "archive.jsonl")
        candidates = run_search(proposer, Racer("main", scorer, settings.ladder, 0), archive, settings, **options)
        assert not archive.candidates or read_archive(tmp_path / folder / "archive.jsonl") == archive.candidates
        return candidates

    return run


def portfolio(space, seed):
    return Portfolio({"s": Sensitivity([2.0, 4.0]), "r": Random(), "e": Evolutionary()}).build(space, seed, NOBODY)


def uniform(space):
    return Uniform().build(space, 0, NOBODY).ask(1)[0]


def without_final_heat(candidates):
    return [c for c in candidates if c.proposal.operator != "final"]


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


ARMS = {"s": Sensitivity([2.0, 4.0]), "r": Random(), "e": Evolutionary(), "g": Gradient(n_windows=1)}
SEARCHES = {
    "nested": (Portfolio(ARMS), LADDER),
    "growing": (Portfolio(ARMS), GROWING),
    "fresh": (EvoPress(), FRESH),
    "gradient": (Gradient(n_windows=2), GROWING),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_was_broken_off_gives_the_same_archive(name, search, space, tmp_path):
    proposer, ladder = SEARCHES[name]
    settings = config(max_candidates=13, ladder=ladder, n_finalists=2)
    whole = search(proposer, settings, "whole", yardsticks=[uniform(space)])
    lines = {
        file: (tmp_path / "whole" / file).read_bytes().splitlines(keepends=True)
        for file in ("evaluations.jsonl", "archive.jsonl")
    }
    for share in (0.1, 0.7):
        folder = tmp_path / f"broken at {share}"
        folder.mkdir()
        for file, part in (("evaluations.jsonl", share), ("archive.jsonl", share / 2)):
            n_lines = int(part * len(lines[file]))
            (folder / file).write_bytes(b"".join(lines[file][:n_lines]) + lines[file][n_lines][:9])
        assert search(proposer, settings, folder.name, yardsticks=[uniform(space)]) == whole
        assert (folder / "archive.jsonl").read_bytes() == b"".join(lines["archive.jsonl"])


def test_tokens_of_gradients_are_in_the_archive(search, space, tmp_path):
    candidates = search(Gradient(n_windows=2), config(max_candidates=12, ladder=GROWING))
    records = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    n_looks = sum("gradients" in record for record in records)
    n_scored = sum(len(record.get("window_scores", [])) for record in records)
    assert n_looks >= 2
    assert sum(c.n_tokens for c in candidates) == (n_scored + 2 * FORWARD_PASSES * 2 * n_looks) * N_TOKENS
    assert sum(c.proposal.proposal_tokens for c in candidates) == 2 * FORWARD_PASSES * 2 * n_looks * N_TOKENS


def test_yardsticks_race_first(search, space):
    wishes = [{unit.name: 0.5 + spread * (unit.block - 0.5) for unit in space.grid.units} for spread in (0.3, 0.0, -0.3)]
    yardsticks = [Proposal(space.project(wish), f"yardstick {i}") for i, wish in enumerate(wishes)]
    candidates = search(Random().build(space, 0, NOBODY), config(max_candidates=7), yardsticks=yardsticks)
    assert [c.proposal for c in candidates[:3]] == yardsticks
    assert sorted(c.n_windows for c in candidates[:3]) == [1, 4, 4]
    assert {c.proposal.proposer for c in candidates[3:7]} == {"random"}


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
    assert listener.heard == without_final_heat(candidates)
    assert [c.id for c in candidates] == list(range(9))


def test_the_last_round_is_as_small_as_the_tokens_left(search, space):
    # A round of four: each sees one window, two go on to three more. All windows are known then, so the final rung is free.
    one, whole = N_TOKENS, (4 * 1 + 2 * 3) * N_TOKENS
    budgets = {one - 1: 0, 4 * one - 1: 3 * one, whole: whole, whole + 1: whole, whole + one: whole + one, 3 * whole: 3 * whole}
    for max_tokens, spent in budgets.items():
        candidates = search(Random().build(space, 0, NOBODY), config(max_tokens), f"{max_tokens}")
        assert sum(c.n_tokens for c in candidates) == spent
        assert len(best(candidates)) == (spent > 0)


class Answers:
    """A language model that knows one answer, which is no reply."""

    name = "answers"

    def complete(self, prompt, schema, n, seed):
        return [Reply("no", None, 1, 1)] * n

    def score(self, prompt, options):
        return [Reply(option, -float(len(option)), 1, 1) for option in options]


def proposers(space):
    """Every proposer, and a portfolio of those that spend tokens on gradients."""
    Path("winner").mkdir()
    Archive(Path("winner/archive.jsonl")).extend([Candidate(0, "main", uniform(space), State.COMPLETE, 0.5, 4, 9)])
    Path("winner/report.json").write_text(json.dumps({"search": {"winner": {"id": 0}}}))
    looking = {"dynamic_programme": DynamicProgramme(n_windows=2), "gradient": Gradient(n_windows=1), "self_pruner": SelfPruner()}
    return looking | {
        "alphapruning": AlphaPruning(),
        "atp": ATP(),
        "block_influence": LeastInfluence(),
        "dlp": DLP(),
        "evolutionary": Evolutionary(),
        "flap_global": FLAPGlobal(),
        "evopress": EvoPress(),
        "optuna_sampler": OptunaSampler(),
        "owl": OWL(),
        "portfolio": Portfolio(looking),
        "random": Random(),
        "self_pruner_paper": SelfPrunerPaper(population=4, n_crossovers=2, n_mutations=2),
        "sensitivity": Sensitivity(),
        "stepwise": Stepwise(n_windows=1),
        "stored": Stored("winner"),
        "surrogate": Surrogate(n_children=8),
        "uniform": Uniform(),
    }


@pytest.mark.parametrize("name", find_methods("proposer"))
def test_no_proposer_spends_more_than_the_tokens(name, bench, space, tmp_path, monkeypatch):
    """Budgets from less than a window to several rounds; from what the first round needs on, candidates are scored."""
    monkeypatch.chdir(tmp_path)
    measured = {m: {0: 0.1, 1: 0.3} for form in (OWL(), AlphaPruning(), DLP(), LeastInfluence()) for m in form.measurements()}
    proposer = proposers(space)[name]
    for i, (ladder, max_tokens) in enumerate([(GROWING, N_TOKENS - 1), (GROWING, 500), (FRESH, 170), (SINGLE, 170)]):
        bench[0].restore()
        path = tmp_path / f"{i}.jsonl"
        scorer = Scorer(Bench(*bench), Journal(path))
        gradients = GradientValues(scorer)
        working = proposer.build(replace(space, measured=measured, move_values=gradients), 3, Answers())
        settings = config(max_tokens, ladder=ladder, n_finalists=3, n_sensitivity_windows=0, batch_size=1)
        archive, racer = Archive(tmp_path / f"archive_{i}.jsonl"), Racer("main", scorer, ladder, 0)
        candidates = run_search(working, racer, archive, settings, [uniform(space)], n_tokens_before=9, gradients=gradients)
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        n_scored = sum(len(record.get("window_scores", [])) for record in records)
        n_valued = sum(2 * FORWARD_PASSES * len(record["windows"]) for record in records if "gradients" in record)
        spent = (n_scored + n_valued) * N_TOKENS
        assert spent == sum(c.n_tokens for c in candidates)
        assert spent <= max(0, max_tokens - 9)
        with suppress(ConfigError):
            check_first_round("main", replace(settings, max_tokens=max_tokens - 9), proposer, N_WINDOWS, N_TOKENS, 1)
            assert [c for c in candidates if c.proposal.operator != "final"][1:]


def test_what_was_spent_before_counts(search, space):
    candidates = search(Random().build(space, 0, NOBODY), config(1000), n_tokens_before=1000 - 2 * N_TOKENS)
    assert len(without_final_heat(candidates)) == 2
    assert search(Random().build(space, 0, NOBODY), config(1000), "none", n_tokens_before=1000) == []


@pytest.mark.parametrize("max_tokens", [200, 400, 700])
def test_the_final_heat_is_paid_from_what_was_kept_back_for_it(max_tokens, search, space):
    ladder = Ladder([1, 2], [2])
    candidates = search(portfolio(space, 0), config(max_tokens, ladder=ladder, n_finalists=3))
    heat = [c for c in candidates if c.proposal.operator == "final"]
    assert 1 <= len(heat) <= 3
    assert {c.n_windows for c in heat} == {N_WINDOWS}
    # What is left pays for no further candidate, or for no further champion in the heat.
    assert max_tokens - N_WINDOWS * N_TOKENS < sum(c.n_tokens for c in candidates) <= max_tokens


def test_the_final_heat_is_on_all_windows_and_gives_the_best(search, space):
    candidates = search(portfolio(space, 0), config(1000, ladder=Ladder([1, 2], [2]), n_finalists=2))
    heat = [c for c in candidates if c.proposal.operator == "final"]
    assert candidates[-len(heat) :] == heat
    assert sorted(best(candidates, len(heat)), key=lambda c: c.id) == heat
    champions = [c for c in candidates if c.gain is not None]
    assert [c.allocation for c in heat] == [c.allocation for c in champions[::-1][: len(heat)]]
    assert all(c.gain is None for c in heat)


@pytest.mark.parametrize("max_tokens", [80, 90, 170, 250])
def test_what_the_final_heat_does_not_need_is_searched_with(max_tokens, search, space):
    """At 80 tokens, two champions after five candidates would need 48 of the 40 that are left then."""
    settings = config(max_tokens, ladder=GROWING, n_finalists=3)
    candidates = search(Random().build(space, 0, NOBODY), settings, yardsticks=[uniform(space)])
    assert max_tokens - N_WINDOWS * N_TOKENS < sum(c.n_tokens for c in candidates) <= max_tokens


@pytest.mark.parametrize("n", [1, 2, 6, 7])
@pytest.mark.parametrize("ladder", [GROWING, FRESH], ids=["growing", "fresh"])
def test_exactly_so_many_candidates_are_proposed_as_may_be(n, ladder, search, space):
    yardsticks = [uniform(space), *Random().build(space, 1, NOBODY).ask(1)]
    candidates = search(Random().build(space, 0, NOBODY), config(max_candidates=n, ladder=ladder), yardsticks=yardsticks)
    assert sum(not c.is_champion_again for c in candidates) == n


def test_fewer_are_asked_for_where_that_leaves_enough_for_gradients(bench, space, tmp_path):
    look = 2 * FORWARD_PASSES * N_TOKENS
    found = {}
    for max_tokens in (look + N_TOKENS - 1, look + N_TOKENS, look + 2 * N_TOKENS):
        gradients = GradientValues(Scorer(Bench(*bench), Journal(tmp_path / f"{max_tokens}.jsonl")))
        proposer = Gradient(n_windows=1).build(replace(space, move_values=gradients), 3, NOBODY)
        archive, racer = Archive(tmp_path / f"archive_{max_tokens}.jsonl"), Racer("main", gradients.scorer, GROWING, 0)
        run = Search(proposer, racer, archive, gradients=gradients)
        run.go_on(config(max_tokens, ladder=GROWING, batch_size=1))
        found[max_tokens] = len(without_final_heat(run.candidates)), run.n_tokens, run.ending
    too_dear = "what is left of its {} tokens does not pay for {}"
    assert found == {
        71: (0, 0, too_dear.format(71, "the proposer's gradients")),
        72: (1, 72, too_dear.format(72, "another candidate")),
        80: (2, 80, too_dear.format(80, "another candidate")),
    }


ENDINGS = {
    "tokens": (Random(), {"max_tokens": 100}, "what is left of its 100 tokens does not pay for another candidate"),
    "candidates": (Random(), {"max_candidates": 3}, "search.max_candidates=3 was reached"),
    "seconds": (Random(), {"max_seconds": 1e-9}, "search.max_seconds=1e-09 was reached"),
    "silence": (Uniform(), {}, "the proposer had nothing more to propose"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_it_says_why_it_ended(name, bench, space, tmp_path):
    proposer, limits, ending = ENDINGS[name]
    racer = Racer("main", Scorer(Bench(*bench), Journal(tmp_path / "evaluations.jsonl")), LADDER, 0)
    run = Search(proposer.build(space, 0, NOBODY), racer, Archive(tmp_path / "archive.jsonl"))
    run.go_on(config(**limits))
    assert run.ending == ending


def test_it_stops_at_the_seconds(search, space):
    assert search(Random().build(space, 0, NOBODY), config(max_seconds=1e-9)) == []


def test_yardsticks_count_against_the_budget(search, space):
    candidates = search(Random().build(space, 0, NOBODY), config(4 * N_TOKENS), yardsticks=[uniform(space)])
    assert [c.proposal for c in without_final_heat(candidates)] == [uniform(space)]


def test_it_ends_when_the_proposer_has_no_more_to_say(search, space):
    proposals = [uniform(space), *Random().build(space, 0, NOBODY).ask(4)]
    candidates = search(FixedProposals("fixed", proposals), config())
    assert [c.proposal for c in without_final_heat(candidates)] == proposals


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
    with caplog.at_level(logging.INFO, logger="selfprune.search.loop"):
        candidates = search(Random().build(space, 0, NOBODY), config(max_candidates=8), on_progress=states.append)
    assert [state.n_candidates for state in states] == [4, 8]
    assert states[-1].n_tokens == sum(c.n_tokens for c in candidates)
    assert states[-1].best_score == min(c.score for c in candidates if c.state is State.COMPLETE)
    assert len(caplog.records) == 2


def test_a_search_hears_only_of_its_own_candidates(bench, space, tmp_path):
    scorer, archive = Scorer(Bench(*bench), Journal(tmp_path / "evaluations.jsonl")), Archive(tmp_path / "archive.jsonl")
    settings, states = config(max_candidates=4), []
    racers = [Racer(name, scorer, LADDER, 0) for name in ("main", "random")]
    first = run_search(Random(1.0).build(space, 1, NOBODY), racers[0], archive, settings)
    second = run_search(Random(0.01).build(space, 0, NOBODY), racers[1], archive, settings, (), states.append)
    scores = [best(group)[0].score for group in (first, second)]
    assert [racer.incumbent.score for racer in racers] == scores
    assert states[-1].best_score == scores[1] != scores[0]
    assert [c.id for c in second] == [4, 5, 6, 7]
    assert {c.search for c in first} == {"main"}
    assert {c.search for c in second} == {"random"}
    # nor does it know the scores of the other's
    assert {c.n_tokens for c in second if c.state is State.COMPLETE and c.gain is None} <= {4 * N_TOKENS, 0}


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


def test_a_search_that_ended_by_time_ends_there_again(search, space, tmp_path):
    settings = config(max_seconds=0.05, ladder=Ladder([1], [], grows=False))
    first = search(Random().build(space, 0, NOBODY), settings)
    archive = (tmp_path / "run/archive.jsonl").read_bytes()
    assert first
    assert search(Random().build(space, 0, NOBODY), replace(settings, max_seconds=1e9)) == first
    assert (tmp_path / "run/archive.jsonl").read_bytes() == archive
