from collections import Counter
from dataclasses import dataclass, field

import pytest

from selfprune.allocation import LevelGrid, Unit
from selfprune.candidate import Candidate, Proposal, State
from selfprune.errors import ConfigError
from selfprune.proposers.base import ProposerConfig, SearchSpace
from selfprune.proposers.evolutionary import Evolutionary
from selfprune.proposers.portfolio import Portfolio, PortfolioProposer
from selfprune.proposers.random import Random

GRID = LevelGrid.with_constant_step([Unit("a", 0, "w", 100), Unit("b", 1, "w", 100)], 0.05)
SPACE = SearchSpace(GRID, 100)


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


def build(shares, **n_left):
    return PortfolioProposer({name: Arm(name, n_left.get(name, 10**9)) for name in shares}, shares)


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


def test_what_one_arm_leaves_the_others_take_up_by_their_shares():
    portfolio = build({"x": 2, "y": 1, "z": 1}, x=3)
    # Dealt 4, 2 and 2; x has 3, and the one that is missing goes to y or z.
    first = count(portfolio.ask(8))
    assert first["x"] == 3
    assert sorted([first["y"], first["z"]]) == [2, 3]
    later = count(proposal for _ in range(10) for proposal in portfolio.ask(8))
    assert later["x"] == 0
    assert later["y"] + later["z"] == 80
    assert abs(later["y"] - later["z"]) <= 2


def test_an_arm_that_is_out_is_asked_once_per_round():
    portfolio = build({"x": 1, "y": 1}, x=0)
    portfolio.ask(6)
    assert portfolio.arms["x"].asked == [3]
    assert portfolio.arms["y"].asked == [3, 3]


def test_when_all_arms_are_out_it_says_less():
    portfolio = build({"x": 1, "y": 1}, x=1, y=2)
    assert count(portfolio.ask(6)) == {"x": 1, "y": 2}
    assert portfolio.ask(6) == []


def test_an_arm_that_finds_new_words_is_heard_again():
    portfolio = build({"x": 1, "y": 1}, x=0)
    portfolio.ask(4)
    portfolio.arms["x"].n_left = 100
    assert count(portfolio.ask(4))["x"] == 2


def test_an_arm_without_a_share_is_never_asked():
    portfolio = build({"x": 1, "y": 0}, x=2)
    assert count(portfolio.ask(4)) == {"x": 2}
    assert portfolio.arms["y"].asked == []


def test_every_arm_hears_everything():
    portfolio = build({"x": 1, "y": 0})
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
    assert portfolio.shares == {"r": 1.0, "e": 3}


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
    nested = Portfolio({"p": Portfolio({"r": Random()}), "e": Evolutionary()}).build(SPACE, 0, None)
    assert count(nested.ask(6)) == {"random": 3, "evolutionary": 3}
