import math

import pytest

from selfprune.errors import ConfigError
from selfprune.search.ladder import Ladder


@pytest.mark.parametrize(
    ("n_windows", "n_survivors"),
    [([], []), ([0, 4], [1]), ([4, 4], [1]), ([8, 4], [1]), ([4, 8], []), ([4, 8], [1, 1]), ([4], [1]), ([4, 8], [0])],
)
def test_a_ladder_that_does_not_rise_is_refused(n_windows, n_survivors):
    with pytest.raises(ConfigError, match=r"search\.ladder.* got "):
        Ladder(n_windows, n_survivors)


@pytest.mark.parametrize(
    ("name", "value"), [("z_worse", -0.1), ("z_worse", math.nan), ("z_better", -1.0), ("scale", 0.0), ("scale", math.inf)]
)
def test_a_number_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"search\.ladder\.{name} must .* got {value}"):
        Ladder(**{name: value})


def test_rungs_that_are_drawn_afresh_cannot_grow():
    with pytest.raises(ConfigError, match=r"search\.ladder\.fresh .* search\.ladder\.grows=false"):
        Ladder(fresh=True)


def test_the_scale_multiplies_all_rungs_and_leaves_what_was_given():
    ladder = Ladder([8, 64, 256], [8, 2], scale=0.25)
    assert ladder.rungs == [2, 16, 64]
    assert (ladder.n_windows, ladder.scale) == ([8, 64, 256], 0.25)
    assert Ladder([8, 20], [2], scale=1.3).rungs == [10, 26]


def test_a_scale_that_makes_rungs_equal_is_refused():
    with pytest.raises(ConfigError, match=r"needs rising n_windows .* got \[1, 1, 3\]"):
        Ladder([8, 64, 256], [8, 2], scale=0.012)
