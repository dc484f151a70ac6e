import math

import pytest

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Item, Unit
from selfprune.language_models.scripted import ScriptedLanguageModel
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.closed_forms.block_influence import BlockInfluence, LeastInfluence

UNITS = [
    Unit(f"layers.{block}.{kind}", block, kind, n_items, 10, item)
    for block in range(5)
    for kind, n_items, item in (("self_attn", 4, Item.HEAD_GROUP), ("mlp", 8, Item.CHANNEL))
]
GRID = LevelGrid.of_structures(UNITS, 0.1, whole=True)


def dropped(influences, n_weights):
    """Unit -> whether it goes."""
    space = SearchSpace(GRID, Target.in_weights(GRID, n_weights), measured={BlockInfluence(): dict(enumerate(influences))})
    (proposal,) = LeastInfluence().build(space, 0, ScriptedLanguageModel.from_texts([])).ask(1)
    return {name for name, level in proposal.allocation.items() if level}


@pytest.mark.parametrize(
    ("n_weights", "blocks"), [(120, [3]), (240, [3, 1]), (360, [3, 1, 4]), (480, [3, 1, 4, 0]), (600, [3, 1, 4, 0, 2])]
)
def test_the_blocks_of_least_influence_go_first(n_weights, blocks):
    expected = {f"layers.{block}.{kind}" for block in blocks for kind in ("self_attn", "mlp")}
    assert dropped([0.4, 0.02, 0.5, 0.01, 0.3], n_weights) == expected


def test_of_the_last_block_the_attention_goes_alone_where_that_is_enough():
    assert dropped([0.4, 0.02, 0.5, 0.01, 0.3], 155) == {"layers.3.self_attn", "layers.3.mlp", "layers.1.self_attn"}


def test_a_block_whose_influence_is_not_finite_stays_longest():
    assert "layers.0.mlp" not in dropped([math.nan, 0.02, 0.5, 0.01, 0.3], 480)
