"""The walk from the dense model to the budget, against a score whose every value is known."""

import math
from dataclasses import dataclass, field, replace

import pytest

from selfprune.allocations.candidate import Candidate, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.move_values import Look
from selfprune.proposers.searches.stepwise import Stepwise

COSTS = {"a": 5.0, "b": 1.0, "c": 3.0, "d": 2.0, "e": 9.0, "f": 4.0}
UNITS = [Unit(name, i // 2, "mlp", 1, weights_per_item=10 if i % 2 else 20) for i, name in enumerate(COSTS)]
GRID = LevelGrid.with_constant_step(UNITS, 1.0)
"""Units of 20 and 10 weights in turn, of which all or nothing goes."""


@dataclass
class Looking:
    """Sees the sum of the costs of what is gone; `b` and `d` hurt together, ten times as much, and a trap with everything."""

    n_left: int = 10**9
    broken: str = ""
    trap: str = ""
    seen: list[frozenset[str]] = field(default_factory=list)
    n_windows: list[int] = field(default_factory=list)

    def look(self, allocation, n_windows):
        if n_windows > self.n_left:
            return None
        self.n_left -= n_windows
        gone = frozenset(name for name, level in allocation.items() if level)
        self.seen.append(gone)
        self.n_windows.append(n_windows)
        together = 30.0 if {"b", "d"} <= gone or (self.trap in gone and len(gone) > 1) else 0.0
        return Look(math.nan if self.broken in gone else sum(COSTS[name] for name in gone) + together, 7 * n_windows)


def walk(n_target, looking, n_asked=99, ties=(), **settings):
    target = replace(Target.in_weights(GRID, n_target), ties=ties)
    proposer = Stepwise(**settings).build(SearchSpace(GRID, target, move_values=looking), 0, None)
    said = proposer.ask(n_asked)
    assert all(target.is_met(proposal.allocation) for proposal in said)
    return gone_in(said), said, proposer


def gone_in(said):
    return [{name for name, level in proposal.allocation.items() if level} for proposal in said]


def tell_best(proposer, said):
    proposer.tell([Candidate(0, "main", said[0], State.COMPLETE, score=1.0, n_windows=8)])


def test_the_unit_goes_whose_loss_costs_least_per_weight_and_what_hurts_together_is_not_taken_together():
    # per weight: a 0.25, b 0.1, c 0.15, d 0.2, e 0.45, f 0.4; after b, d costs 3.2
    ends, _, _ = walk(50, looking := Looking())
    assert ends[0] == {"a", "b", "c"}
    assert looking.seen[0] == set()
    assert frozenset({"b", "d"}) in looking.seen


def test_all_ways_to_take_the_last_step_are_said_once_the_best_first_and_the_first_carries_the_tokens():
    ends, said, proposer = walk(30, looking := Looking(), n_windows=3, n_looks=8)
    assert ends == [{"b", "c"}, {"a", "b"}, {"b", "e"}]
    assert [proposal.proposal_tokens for proposal in said] == [7 * 3 * len(looking.seen), 0, 0]
    assert proposer.ask(4) == []


def test_what_saves_more_than_is_missing_is_charged_for_what_is_missing():
    # the 10 that are missing cost 2 of d and 3 of c, though c is cheaper per weight of its own
    assert walk(10, Looking())[0][0] == {"b"}
    ends, _, _ = walk(20, Looking())
    assert ends[0] == {"c"} or ends[0] == {"b", "c"}


def test_after_the_first_step_only_the_most_promising_are_looked_at_again():
    walk(50, looking := Looking(), n_looks=2)
    of_size = [sum(len(gone) == n for gone in looking.seen) for n in range(5)]
    assert of_size[:3] == [1, 6, 2]
    assert max(of_size[2:]) == 2


@pytest.mark.parametrize("n_left", [0, 1, 2, 6, 9, 12])
def test_a_walk_that_cannot_be_paid_to_its_end_goes_on_by_what_it_knows(n_left):
    ends, said, _ = walk(50, looking := Looking(n_left), n_windows=1)
    assert ends
    assert said[0].proposal_tokens == 7 * len(looking.seen) == 7 * min(n_left, len(looking.seen))


def test_an_exchange_gives_back_what_the_walk_should_not_have_taken():
    # b is the cheapest by itself, and adds 30 to everything that follows
    ends, said, proposer = walk(30, Looking(trap="b"))
    assert "b" in ends[0]
    tell_best(proposer, said)
    exchanged = proposer.ask(4)
    assert gone_in(exchanged)[0] == {"c", "d"}
    assert {proposal.operator for proposal in exchanged} == {"exchange"}


def test_where_the_best_stays_twice_as_many_windows_look():
    _, said, proposer = walk(30, looking := Looking())
    for n_windows in (2, 4, 8):
        tell_best(proposer, said)
        n_before = len(looking.seen)
        # nothing looks better than {b, c}, and the least bad is said of what was looked at
        assert gone_in(proposer.ask(4)) == [{"c", "d"}]
        assert set(looking.n_windows[n_before:]) == {n_windows}
        assert len(set(looking.seen[n_before:])) == len(looking.seen[n_before:])


def test_exchanges_wait_for_a_candidate_that_was_scored_to_the_end():
    _, said, proposer = walk(30, looking := Looking())
    n_before = len(looking.seen)
    proposer.tell([Candidate(0, "main", said[0], State.STOPPED, score=1.0, n_windows=8)])
    assert proposer.ask(4) == []
    assert len(looking.seen) == n_before


def test_a_unit_without_which_the_target_is_out_of_reach_is_not_given_back():
    _, said, proposer = walk(90, Looking())
    assert said[0].allocation == dict.fromkeys(COSTS, 1)
    tell_best(proposer, said)
    assert proposer.ask(4)[0].allocation == said[0].allocation


@pytest.mark.parametrize("n_left", [20, 30, 31, 32, 33, 36, 40, 60])
def test_every_token_of_a_look_is_told_of_however_few_there_are(n_left):
    _, said, proposer = walk(30, looking := Looking(n_left, trap="b"))
    spent = [said]
    for _ in range(4):
        tell_best(proposer, spent[-1] or said)
        spent.append(proposer.ask(2))
    told = sum(proposal.proposal_tokens for proposals in spent for proposal in proposals)
    assert told == 7 * sum(looking.n_windows)


def test_a_unit_without_which_the_model_is_broken_goes_last():
    ends, _, _ = walk(60, Looking(broken="b"))
    assert "b" not in ends[0]


def test_tied_units_go_together():
    ties = (("a", "b"), ("c", "d"), ("e", "f"))
    ends, _, _ = walk(30, looking := Looking(), ties=ties)
    assert ends[0] == {"c", "d"}
    assert all(gone in (set(), {"a", "b"}, {"c", "d"}, {"e", "f"}) for gone in looking.seen)


def test_wrong_settings_are_told():
    for settings in ({"n_windows": 0}, {"n_looks": 0}):
        with pytest.raises(ConfigError, match="at least 1, got"):
            Stepwise(**settings)
    with pytest.raises(ConfigError, match="got none"):
        Stepwise().build(SearchSpace(GRID, Target.in_weights(GRID, 30)), 0, None)
