"""What the layers tell: by hand, on a grid of six units."""

import pytest

from selfprune.allocations.candidate import Candidate, Proposal, State
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Item, Unit
from selfprune.reports.insight.layers import layer_record, rank_correlation
from selfprune.reports.insight.seen_moves import SeenMoves
from selfprune.reports.page.layers import correlation_sentences, layers_picture
from selfprune.search.scoring import digest

UNITS = [
    unit
    for block in range(4)
    for unit in (
        Unit(f"layers.{block}.attn", block, "attn", 4, 10, Item.HEAD_GROUP, f"layers.{block}.o_proj", 2),
        Unit(f"layers.{block}.mlp", block, "mlp", 8, 5, Item.CHANNEL, f"layers.{block}.down_proj", 1),
    )
]
GRID = LevelGrid.with_constant_step(UNITS, 0.25)
HALF = {unit.name: unit.n_items // 2 for unit in UNITS}
NUMBERS = {"influence": {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1}, "alikeness": {0: 0.5, 1: 0.6, 2: float("nan"), 3: 0.9}}
COSTS = {name: 0.01 * (i + 1) for i, name in enumerate(HALF)}
MOVES = {digest(HALF, GRID): SeenMoves(restoring=dict.fromkeys(HALF, 0.0), removing=COSTS)}
# what is dear returns, and what is cheap goes: steps by hand
WITH_GRADIENTS = {**HALF, "layers.0.attn": 3, "layers.0.mlp": 6, "layers.3.attn": 1, "layers.3.mlp": 2}
AGAINST = {**HALF, "layers.0.attn": 1, "layers.0.mlp": 2, "layers.3.attn": 3, "layers.3.mlp": 6}


def born(i, allocation, proposer, parents=()):
    return Candidate(i, "main", Proposal(allocation, proposer, "step", parents), State.COMPLETE, 0.1, 8, 100)


ARCHIVE = [born(0, HALF, "uniform"), born(1, WITH_GRADIENTS, "gradient", (0,)), born(2, AGAINST, "self_pruner", (0,))]


@pytest.fixture
def record():
    return layer_record(GRID, WITH_GRADIENTS, NUMBERS, {}, MOVES, ARCHIVE)


def test_what_went_of_a_block_counts_weights(record):
    # of a block's 80 weights: 30 of 40 of the heads, and 30 of 40 of the channels
    assert record["blocks"]["removed"] == {"0": 0.75, "1": 0.5, "2": 0.5, "3": 0.25}
    assert record["units"]["removed"]["layers.0.attn"] == 0.75


def test_a_number_that_is_not_finite_is_left_out_and_one_that_was_not_measured_is_missing(record):
    assert record["blocks"]["alikeness"] == {"0": 0.5, "1": 0.6, "3": 0.9}
    assert set(record["units"]) == {"removed", "cost"}


def test_costs_are_per_weight(record):
    # a level is one group of heads, of ten weights, or two channels, of five each
    assert record["units"]["cost"]["layers.0.attn"] == pytest.approx(0.01 / 10)
    assert record["units"]["cost"]["layers.1.mlp"] == pytest.approx(0.04 / (GRID.levels["layers.1.mlp"].step * 5))


def test_blocks_of_much_influence_and_little_left_go_together_by_rank(record):
    of_blocks = {(pair["one"], pair["other"]): pair["rho"] for pair in record["correlations"] if pair["of"] == "blocks"}
    # ranks 4, 3, 2, 1 against 4, 2.5, 2.5, 1: a covariance of 4.5 and variances of 5 and 4.5
    assert of_blocks["removed", "influence"] == pytest.approx(4.5 / (5 * 4.5) ** 0.5, abs=1e-6)
    assert ("influence", "alikeness") not in of_blocks, "three pairs are too few"


def test_steps_agree_with_gradients_when_what_is_cheap_goes(record):
    agreement = {each["proposer"]: each for each in record["agreement"]}
    assert agreement["gradient"]["n"] == agreement["self_pruner"]["n"] == 1
    assert agreement["gradient"]["rho"] == -agreement["self_pruner"]["rho"] > 0.7
    # what goes costs 0.01 and 0.02 a level, what returns brings nothing: foretold to rise
    assert agreement["gradient"]["n_foretold_to_fall"] == 0


def test_no_correlation_is_told_of_few_pairs_or_of_what_is_all_alike():
    numbers = {i: float(i) for i in range(4)}
    assert rank_correlation(numbers, {i: -float(i) for i in range(4)}) == pytest.approx(-1)
    assert rank_correlation({0: 1.0, 1: 2.0, 2: 3.0}, numbers) is None
    assert rank_correlation(numbers, dict.fromkeys(numbers, 1.0)) is None


def test_the_picture_has_ranks_and_its_table_the_numbers(record):
    picture = layers_picture(record)
    (ranks,) = picture.figure.data
    assert list(ranks.z[0]) == [1.0, 0.5, 0.5, 0.0]
    assert list(ranks.z[2]) == [0.0, 0.5, None, 1.0]
    assert picture.rows[2] == ["2", "0.5", "0.2", ""]
    assert picture.header == ["block", "removed", "influence", "alikeness"]
    assert "removed and influence over blocks +0.95" in picture.text
    assert "self_pruner 0 of 1" in picture.text
    assert layers_picture({**record, "blocks": {"removed": {"0": 0.5}}}) is None
    assert correlation_sentences({"correlations": [], "agreement": []}) == ["No two of these go together."]
