from collections import Counter
from dataclasses import dataclass, field

import pytest

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import ProposerConfig, SearchSpace
from selfprune.proposers.prompted.self_pruner import SelfPruner
from selfprune.proposers.searches.evolutionary import Evolutionary
from selfprune.proposers.searches.portfolio import Portfolio, PortfolioProposer
from selfprune.proposers.searches.random import Random

GRID = LevelGrid.with_constant_step([Unit("a", 0, "w", 100), Unit("b", 1, "w", 100)], 0.05)
SPACE = SearchSpace(GRID, Target.in_weights(GRID, 100))


@dataclass
class Arm:
    """Says so many proposals in all, and keeps what it was asked and told."""

    name: str
    n_left: int = 10**9
    asked: list = field(default_factory=list)
    told: list = field(default_factory=list)

    def ask(self, n):
        self.asked.append(n)
        n_said = min(n, self.n_left)
        self.n_left -= n_said
        return [Proposal({}, self.name)] * n_said

    def tell(self, candidates):
        self.told += candidates


def build(shares, explore=1.0, quantum=1, **n_left):
    settings = Portfolio(explore=explore, quantum=quantum)
    return PortfolioProposer({name: Arm(name, n_left.get(name, 10**9)) for name in shares}, shares, settings)


def told(portfolio, gains, n_tokens=100):
    """Asks for one round, and tells each arm's first candidate of it with that arm's gain."""
    gains = dict(gains)
    candidates = [
        Candidate(i, "main", proposal, State.COMPLETE, 1.0, 8, n_tokens, gain=gains.pop(proposal.proposer, None))
        for i, proposal in enumerate(portfolio.ask(16))
    ]
    portfolio.tell(candidates)


def count(proposals):
    return Counter(proposal.proposer for proposal in proposals)


@pytest.mark.parametrize("shares", [{"x": 3, "y": 5, "z": 1}, {"x": 1.0, "y": 1.0, "z": 1.0}, {"x": 0.01, "y": 2.0, "z": 0.5}])
@pytest.mark.parametrize("n", [1, 4, 16])
def test_shares_hold_over_time_to_within_one_proposal(shares, n):
    portfolio, said, total = build(shares), Counter(), 0
    for _ in range(50):
        proposals = portfolio.ask(n)
        assert len(proposals) == n
        said += count(proposals)
        total += n
        for name, share in shares.items():
            assert abs(said[name] - total * share / sum(shares.values())) <= 1


@pytest.mark.parametrize("quantum", [2, 4, 8])
def test_arms_are_asked_for_whole_quanta_and_shares_hold_to_within_one(quantum):
    shares = {"x": 3, "y": 2, "z": 1}
    portfolio, said = build(shares, quantum=quantum), Counter()
    for n_rounds in range(1, 40):
        said += count(portfolio.ask(8))
        for name, share in shares.items():
            assert said[name] % quantum == 0
            assert abs(said[name] - 8 * n_rounds * share / 6) <= quantum


def test_the_slots_of_an_arm_that_has_nothing_to_say_go_to_the_others():
    portfolio = build({"x": 2, "y": 1, "z": 1}, x=0)
    assert count(portfolio.ask(8)) == {"y": 4, "z": 4}
    assert len(portfolio.arms["x"].asked) == 1


def test_an_arm_that_says_less_than_it_was_asked_for_leaves_the_rest_unused():
    portfolio = build({"x": 2, "y": 1, "z": 1}, x=3)
    assert count(portfolio.ask(8)) == {"x": 3, "y": 2, "z": 2}
    assert len(portfolio.ask(8)) == 8


def test_when_all_arms_are_out_it_says_less():
    portfolio = build({"x": 1, "y": 1}, x=1, y=2)
    assert count(portfolio.ask(6)) == {"x": 1, "y": 2}
    assert portfolio.ask(6) == []


def test_an_arm_that_finds_new_words_is_heard_again():
    portfolio = build({"x": 1, "y": 1}, x=0)
    portfolio.ask(4)
    portfolio.arms["x"].n_left = 100
    assert count(portfolio.ask(4))["x"] == 2


def test_an_arm_without_a_share_is_not_even_built():
    assert list(Portfolio({"r": Random(), "e": Evolutionary()}, {"e": 0}).build(SPACE, 0, None).arms) == ["r"]


def test_whoever_gains_more_per_token_is_asked_more_and_nobody_is_written_off():
    portfolio = build({"x": 1, "y": 1, "z": 2}, explore=0.25)
    before = portfolio.current_shares()
    assert before == {"x": 0.25, "y": 0.25, "z": 0.5}
    for _ in range(30):
        told(portfolio, {"x": 0.1})
    shares = portfolio.current_shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["x"] > 0.5
    assert shares["y"] >= 0.25 * 0.25
    assert shares["z"] >= 0.25 * 0.5


def test_the_same_gain_for_more_tokens_earns_less():
    portfolio = build({"x": 1, "y": 1}, explore=0.0)
    for i, (name, n_tokens) in enumerate((("x", 1000), ("y", 10))):
        portfolio._asked = [name]
        portfolio.tell([Candidate(i, "main", Proposal({}, name), State.COMPLETE, 1.0, 8, n_tokens, gain=0.1)])
    shares = portfolio.current_shares()
    assert shares["y"] > shares["x"]


def test_credit_fades():
    portfolio = build({"x": 1, "y": 1}, explore=0.0)
    told(portfolio, {"x": 1.0})
    high = portfolio.current_shares()["x"]
    for _ in range(60):
        told(portfolio, {"y": 0.1})
    assert portfolio.current_shares()["x"] < 0.5 < high


def test_without_credit_the_first_shares_stand_for_good():
    portfolio = build({"x": 1, "y": 3})
    for _ in range(5):
        told(portfolio, {"x": 1.0})
    assert portfolio.current_shares() == {"x": 0.25, "y": 0.75}


def test_gains_of_candidates_that_nobody_was_asked_for_are_nobodys():
    portfolio = build({"x": 1, "y": 1}, explore=0.0)
    portfolio.tell([Candidate(0, "main", Proposal({}, "owl"), State.COMPLETE, 1.0, 8, 10, gain=5.0)])
    assert portfolio.current_shares() == {"x": 0.5, "y": 0.5}


@pytest.mark.parametrize("settings", [{"explore": -0.1}, {"explore": 1.1}, {"memory": 2.0}, {"quantum": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="a portfolio needs explore and memory in"):
        Portfolio(**settings)


def test_every_arm_hears_everything():
    portfolio = build({"x": 1, "y": 1})
    candidates = [Candidate(0, "main", Proposal({}, "x"), State.COMPLETE, 1.0)]
    portfolio.tell(candidates)
    assert all(arm.told == candidates for arm in portfolio.arms.values())


def test_arms_of_one_kind_have_seeds_of_their_own():
    portfolio = Portfolio({"one": Random(), "two": Random()}).build(SPACE, 0, None)
    assert portfolio.arms["one"].ask(5) != portfolio.arms["two"].ask(5)


def test_an_arm_builds_on_what_another_proposed():
    portfolio = Portfolio({"r": Random(), "e": Evolutionary()}, {"r": 1, "e": 3}).build(SPACE, 0, None)
    portfolio.tell([Candidate(4, "main", Random().build(SPACE, 5, None).ask(1)[0], State.COMPLETE, 1.0)])
    assert {p.parents for p in portfolio.ask(8) if p.proposer == "evolutionary"} == {(4,)}


def test_shares_that_are_not_named_are_one():
    portfolio = Portfolio({"r": Random(), "e": Evolutionary()}, {"e": 3}).build(SPACE, 0, None)
    assert portfolio.shares == {"r": 0.25, "e": 0.75}


@pytest.mark.parametrize(
    ("arms", "shares", "message"),
    [
        ({}, {}, "at least one arm, got none"),
        ({"r": Random()}, {"random": 2.0}, "must name its arms .* got {'random': 2.0}; its arms are r"),
        ({"r": Random()}, {"r": 0.0}, "leave one of them above 0"),
        ({"r": Random()}, {"r": -1.0}, "must not be negative"),
    ],
)
def test_arms_and_shares_that_do_not_fit_are_refused(arms, shares, message):
    with pytest.raises(ConfigError, match=message):
        Portfolio(arms, shares).build(SPACE, 0, None)


def test_a_portfolio_is_an_arm_like_any_other():
    assert issubclass(Portfolio, ProposerConfig)
    nested = Portfolio({"p": Portfolio({"r": Random()}), "e": Evolutionary()}, quantum=3).build(SPACE, 0, None)
    assert count(nested.ask(6)) == {"random": 3, "evolutionary": 3}


def test_a_portfolio_asks_the_language_model_if_an_arm_with_a_share_does():
    arms = {"random": Random(), "self_pruner": SelfPruner()}
    assert Portfolio(arms).asks_language_model
    assert not Portfolio(arms, {"self_pruner": 0.0}).asks_language_model
    assert not Portfolio({"random": Random()}).asks_language_model
