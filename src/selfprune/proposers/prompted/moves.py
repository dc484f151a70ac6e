"""Zero-sum moves: pruning that one unit is spared and another takes on."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfprune.allocations.unit import Allocation, Unit
from selfprune.proposers.prompted.replies import ReplyError, compact, object_schema, parse_json_object, parse_kind, parse_percent
from selfprune.proposers.prompted.unit_view import UnitView

MAX_MOVE_PERCENT = 30
MAX_MOVES = 4
LABEL = re.compile(r"[^\d-]*(\d{1,6})[\s.:/,_-]*([A-Za-z]\w*(?:\.\w+)*)\W*")


@dataclass(frozen=True)
class Move:
    """One exchange of weights between two units.

    Attributes:
        source: block position and kind of the unit that is pruned less.
        destination: the same of the unit that is pruned more.
        percent: what moves, in percent of the smaller unit's weights.
    """

    source: tuple[int, str]
    destination: tuple[int, str]
    percent: float


def apply(view: UnitView, moves: Sequence[Move], allocation: Allocation) -> dict[str, float]:
    """Unit name -> sparsity after the moves, each of at least one step and at most what both units have room for.

    Raises:
        ReplyError: when a block lacks a unit of that kind.
    """
    grid = view.space.grid
    sparsities = grid.sparsities(allocation)
    for move in moves:
        source, destination = view.find(*move.source), view.find(*move.destination)
        n_weights = move.percent / 100 * min(source.n_weights, destination.n_weights)
        n_weights = max(n_weights, grid.step_weights(source), grid.step_weights(destination))
        room = grid.highest_sparsity(destination) - sparsities[destination.name]
        n_weights = min(n_weights, sparsities[source.name] * source.n_weights, room * destination.n_weights)
        sparsities[source.name] -= n_weights / source.n_weights
        sparsities[destination.name] += n_weights / destination.n_weights
    return sparsities


def show(view: UnitView, moves: Sequence[Move]) -> str:
    """The JSON by which a language model reads and writes moves."""
    entries = [
        {"from": _label(view, move.source), "to": _label(view, move.destination), "percent": round(move.percent)}
        for move in moves
    ]
    return compact({"moves": entries})


def phrase(view: UnitView, moves: Sequence[Move]) -> str:
    """Moves in few words: `3 q > 7 up 10%; 0 k > 5 down 10%`."""
    return "; ".join(f"{_label(view, move.source)} > {_label(view, move.destination)} {round(move.percent)}%" for move in moves)


def moves_schema(sources: Sequence[str], destinations: Sequence[str]) -> dict[str, Any]:
    """JSON schema of what `parse_moves` reads, from units of some labels to units of others."""
    percent = {"type": "integer", "minimum": 1, "maximum": MAX_MOVE_PERCENT}
    move = object_schema({"from": {"enum": list(sources)}, "to": {"enum": list(destinations)}, "percent": percent})
    return object_schema({"moves": {"type": "array", "items": move, "minItems": 1, "maxItems": MAX_MOVES}})


def parse_moves(text: str, view: UnitView, repairs: list[str]) -> list[Move]:
    """Reads `{"moves": [{"from": "3 q", "to": "7 up", "percent": 10}]}`: the first that can be read, as many as are allowed.

    Args:
        text: the reply.
        view: the units that there are.
        repairs: is told what had to be mended.

    Raises:
        ReplyError: when no move can be read.
    """
    moves: list[Move] = []
    reason = "moves must be a list of moves"
    listed = parse_json_object(text, ("moves",))["moves"]
    for entry in listed if isinstance(listed, list) else []:
        try:
            moves.append(_parse_move(entry, view, repairs))
        except ReplyError as error:
            reason = str(error)
            repairs.append("a move that cannot be read left out")
    if not moves:
        raise ReplyError(reason)
    if len(moves) > MAX_MOVES:
        repairs.append("moves beyond the first left out")
    return moves[:MAX_MOVES]


def enumerate_moves(view: UnitView, sources: Sequence[Unit], destinations: Sequence[Unit], n: int, seed: int) -> list[list[Move]]:
    """At most `n` different sets of moves between units of two ranked lists, of several sizes.

    Args:
        view: the units.
        sources: those that may be pruned less, the most promising first.
        destinations: those that may be pruned more, likewise.
        n: how many sets.
        seed: fixes them.
    """
    rng = random.Random(seed)
    found: dict[str, list[Move]] = {}
    for _ in range(10 * n if sources and destinations else 0):
        size = rng.choice((1, 2, 3, MAX_MOVES))
        percent = rng.choice((5, 10, 20))
        ends = [_prefer_first(rng, units, size) for units in (sources, destinations)]
        moves = [
            Move(view.place(source), view.place(destination), percent)
            for source, destination in zip(*ends, strict=False)
            if source != destination
        ]
        if moves:
            found.setdefault(phrase(view, moves), moves)
        if len(found) == n:
            break
    return list(found.values())


def _prefer_first(rng: random.Random, units: Sequence[Unit], n: int) -> list[Unit]:
    """`n` different units in their order; that at rank r is drawn with a weight of 1 / (r + 1)."""
    ranks = list(range(len(units)))
    drawn: list[int] = []
    while ranks and len(drawn) < n:
        (rank,) = rng.choices(ranks, [1 / (r + 1) for r in ranks])
        ranks.remove(rank)
        drawn.append(rank)
    return [units[rank] for rank in sorted(drawn)]


def _label(view: UnitView, place: tuple[int, str]) -> str:
    return view.label(view.find(*place))


def _parse_move(entry: object, view: UnitView, repairs: list[str]) -> Move:
    if not isinstance(entry, dict) or not {"from", "to"} <= entry.keys():
        raise ReplyError("a move must have from, to and percent")
    if "percent" not in entry:
        repairs.append("percent left out")
    ends = [_parse_place(entry[end], view) for end in ("from", "to")]
    return Move(ends[0], ends[1], parse_percent(entry.get("percent", 10), 1, MAX_MOVE_PERCENT, repairs))


def _parse_place(value: object, view: UnitView) -> tuple[int, str]:
    if isinstance(value, dict):
        value = f"{value.get('block')} {value.get('kind')}"
    match = LABEL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ReplyError(
            f"a unit must be named by block and kind, as in {view.label(view.space.grid.units[0])!r}, got {str(value)[:40]!r}"
        )
    place = int(match[1]), parse_kind(match[2], view.kinds)
    view.find(*place)
    return place
