import json

import pytest
from language_space import ALLOCATION, SPACE

from selfprune.proposers.prompted import moves
from selfprune.proposers.prompted.moves import MAX_MOVE_PERCENT, MAX_MOVES, Move, enumerate_moves, parse_moves
from selfprune.proposers.prompted.replies import ReplyError
from selfprune.proposers.prompted.unit_view import UnitView

VIEW = UnitView(SPACE)
DOWN, K = (0, "mlp.down_proj"), (3, "self_attn.k_proj")


def text(*entries):
    return json.dumps({"moves": list(entries)})


def entry(source="0 down", destination="3 k", percent=25):
    return {"from": source, "to": destination, "percent": percent}


def test_a_move_takes_from_one_unit_and_gives_to_the_other():
    wished = moves.apply(VIEW, [Move(DOWN, K, 25)], ALLOCATION)
    before = SPACE.grid.sparsities(ALLOCATION)
    changed = {name: wished[name] - before[name] for name in before if wished[name] != before[name]}
    # a quarter of the smaller unit's 1,200 weights
    assert changed == {"layers.0.mlp.down_proj": pytest.approx(-300 / 10800), "layers.3.self_attn.k_proj": pytest.approx(0.25)}


@pytest.mark.parametrize(("source", "destination"), [("0 k", "3 up"), ("0 up", "3 k")])
def test_a_move_never_takes_more_than_there_is_or_gives_more_than_fits(source, destination):
    read = parse_moves(text(*[entry(source, destination, 30)] * 4), VIEW, [])
    wished = moves.apply(VIEW, read, ALLOCATION)
    assert all(-1e-9 <= sparsity <= 0.95 + 1e-9 for sparsity in wished.values())
    n_removed = sum(wished[unit.name] * unit.n_weights for unit in SPACE.grid.units)
    assert n_removed == pytest.approx(SPACE.grid.n_removed_weights(ALLOCATION))


@pytest.mark.parametrize(
    "name", ["0 down", "0 down_proj", "0 mlp.down_proj", "block 0, down", "0.down", "0/down", {"block": 0, "kind": "down"}]
)
def test_a_unit_may_be_named_in_several_ways(name):
    assert parse_moves(text(entry(name)), VIEW, []) == [Move(DOWN, K, 25)]


def test_what_is_shown_is_read_back():
    shown = [Move(DOWN, K, 5), Move((2, "self_attn.q_proj"), DOWN, 30)]
    assert parse_moves(moves.show(VIEW, shown), VIEW, []) == shown
    assert moves.phrase(VIEW, shown) == "0 down > 3 k 5%; 2 q > 0 down 30%"


UNNAMED = [entry(name) for name in ("4 q", "-1 q", "q", "0 wheel", None)]


@pytest.mark.parametrize("entries", [[], ["x"], [1], [{}], *([broken] for broken in UNNAMED), [entry(percent="much")]])
def test_moves_that_cannot_be_made_are_refused(entries):
    with pytest.raises(ReplyError):
        parse_moves(text(*entries), VIEW, [])


@pytest.mark.parametrize(
    ("entries", "repair"),
    [
        ([entry("99 q"), entry()], "a move that cannot be read left out"),
        ([entry(percent=500)], "a percent clipped"),
        ([{"from": "0 down", "to": "3 k"}], "percent left out"),
        ([entry()] * 9, "moves beyond the first left out"),
    ],
)
def test_what_is_mended_is_said(entries, repair):
    repairs = []
    read = parse_moves(text(*entries), VIEW, repairs)
    assert repair in repairs
    assert 1 <= len(read) <= MAX_MOVES
    assert all(1 <= move.percent <= MAX_MOVE_PERCENT for move in read)


def test_enumerated_moves_differ_repeat_and_prefer_the_first_units():
    units = list(SPACE.grid.units)
    sources, destinations = units[:6], units[6:12]
    found = enumerate_moves(VIEW, sources, destinations, 8, seed=3)
    assert len({moves.phrase(VIEW, option) for option in found}) == 8
    assert (
        found
        == enumerate_moves(VIEW, sources, destinations, 8, seed=3)
        != enumerate_moves(VIEW, sources, destinations, 8, seed=4)
    )
    assert {len(option) for option in found} <= set(range(1, MAX_MOVES + 1))
    many = [move for seed in range(40) for option in enumerate_moves(VIEW, sources, destinations, 8, seed) for move in option]
    counts = [sum(move.source == VIEW.place(unit) for move in many) for unit in sources]
    assert counts[0] > counts[-1]
    assert {move.destination for move in many} == {VIEW.place(unit) for unit in destinations}


def test_where_there_is_but_one_move_it_is_found_in_its_sizes():
    one, other = SPACE.grid.units[:2]
    assert {move.percent for (move,) in enumerate_moves(VIEW, [one], [other], 8, seed=0)} == {5, 10, 20}
    assert enumerate_moves(VIEW, [one], [one], 8, seed=0) == []
