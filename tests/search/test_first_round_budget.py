import re

import pytest

from selfprune.errors import ConfigError
from selfprune.proposers.prompted.self_pruner import SelfPruner
from selfprune.proposers.searches.dynamic_programme import DynamicProgramme
from selfprune.proposers.searches.gradient import Gradient
from selfprune.proposers.searches.portfolio import Portfolio
from selfprune.proposers.searches.random import Random
from selfprune.search.first_round_budget import check_first_round
from selfprune.search.ladder import Ladder
from selfprune.search.search_config import SearchConfig

PORTFOLIO = Portfolio({"gradient": Gradient(), "dynamic_programme": DynamicProgramme()})


def test_the_first_round_of_the_default_search_needs_yardsticks_the_dearest_gradients_and_a_rung():
    needed = 2 * 8 * 256 + 3 * 8 * 4 * 256 + 4 * 8 * 256
    assert needed == 36_864
    check_first_round("main", SearchConfig(needed), PORTFOLIO, 64, 256, n_yardsticks=2, n_units=126)
    told = (
        "search.max_tokens=12000 does not pay for the first round of the main search, which needs 36,864 tokens: 4,096 for 2 "
        "yardsticks, 24,576 for gradients at 3 allocations, 8,192 for the first rung of 4 candidates; raise it, or lower "
        "search.n_per_round, the first of search.ladder.n_windows or data.n_tokens_per_window"
    )
    with pytest.raises(ConfigError) as refused:
        check_first_round("main", SearchConfig(12_000), PORTFOLIO, 64, 256, n_yardsticks=2, n_units=126)
    assert str(refused.value) == told


def test_sensitivities_of_every_unit_count():
    settings = SearchConfig(126 * 8 * 128 + 4_096 - 1, n_sensitivity_windows=8)
    with pytest.raises(
        ConfigError, match="needs 133,120 tokens: 129,024 for the sensitivities of 126 units, 4,096 for the first"
    ):
        check_first_round("main", settings, Random(), 64, 128, n_units=126)


@pytest.mark.parametrize(("n_windows", "n_taken"), [(3, 3), (4, 4), (99, 8)])
def test_gradients_count_by_the_windows_that_they_take(n_windows, n_taken):
    settings = SearchConfig(1, n_per_round=1, ladder=Ladder([2, 8], [2]), batch_size=4)
    with pytest.raises(ConfigError, match=f"{8 * n_taken:,} for gradients at 1 allocations"):
        check_first_round("main", settings, Gradient(n_windows=n_windows), 8, 1)


@pytest.mark.parametrize(
    ("max_tokens", "proposer", "search", "remedy"),
    [
        (30_000, PORTFOLIO, "main", "or give proposer.shares.dynamic_programme=0, with which it needs 28,672"),
        (25_000, PORTFOLIO, "arms", "or give controls.arms.shares.dynamic_programme=0, with which it needs 24,576"),
        (15_000, DynamicProgramme(), "main", "or choose a proposer without gradients, such as evolutionary"),
        (15_000, SelfPruner(n_windows=4), "main", "or give proposer.n_windows=0, with which it needs 12,288"),
    ],
)
def test_the_remedy_is_one_that_makes_the_first_round_fit(max_tokens, proposer, search, remedy):
    n_yardsticks = 2 if search == "main" else 0
    with pytest.raises(ConfigError, match=f"{re.escape(remedy)}$"):
        check_first_round(search, SearchConfig(max_tokens), proposer, 64, 256, n_yardsticks)
