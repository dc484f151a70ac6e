"""Reads the replies of language models, which may have been sampled without constraints."""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from selfprune.errors import SelfpruneError, did_you_mean

MAX_PERCENT = 99
MAX_MOVE_PERCENT = 30
MAX_MOVES = 4
MAX_CHARACTERS = 20_000


class ReplyError(SelfpruneError):
    """A reply that no allocation can be read from."""


@dataclass(frozen=True)
class Coordinates:
    """An allocation in few numbers: a unit's sparsity is that of its kind, plus that of its block, less the target.

    Attributes:
        kinds: kind -> sparsity in percent.
        blocks: sparsity of each block in percent.
    """

    kinds: dict[str, float]
    blocks: list[float]


@dataclass(frozen=True)
class Move:
    """Pruning that is taken from one unit and given to another.

    Attributes:
        source: block position and kind of the unit that is pruned less.
        destination: the same of the unit that is pruned more.
        percent: what moves, in percent of the smaller unit's weights.
    """

    source: tuple[int, str]
    destination: tuple[int, str]
    percent: float


def coordinates_schema(kinds: Sequence[str], n_blocks: int) -> dict[str, Any]:
    """JSON schema of what `parse_coordinates` reads."""
    percent = {"type": "integer", "minimum": 0, "maximum": MAX_PERCENT}
    blocks = {"type": "array", "items": percent, "minItems": n_blocks, "maxItems": n_blocks}
    return _object_schema({"kinds": _object_schema(dict.fromkeys(kinds, percent)), "blocks": blocks})


def moves_schema(kinds: Sequence[str], n_blocks: int) -> dict[str, Any]:
    """JSON schema of what `parse_moves` reads."""
    unit = _object_schema({"block": {"type": "integer", "minimum": 0, "maximum": n_blocks - 1}, "kind": {"enum": list(kinds)}})
    percent = {"type": "integer", "minimum": 1, "maximum": MAX_MOVE_PERCENT}
    move = _object_schema({"from": unit, "to": unit, "percent": percent})
    return _object_schema({"moves": {"type": "array", "items": move, "minItems": 1, "maxItems": MAX_MOVES}})


def parse_json_object(text: str, keys: Collection[str]) -> dict[str, Any]:
    """The first balanced JSON object in a text that has all these keys, whatever stands around it.

    Raises:
        ReplyError: when there is none.
    """
    for value in _json_objects(text[:MAX_CHARACTERS]):
        if all(key in value for key in keys):
            return value
    raise ReplyError(f"no JSON object with {', '.join(keys)}")


def parse_coordinates(text: str, kinds: Sequence[str], n_blocks: int, target_percent: float) -> Coordinates:
    """Reads `{"kinds": {kind: percent}, "blocks": [percent, ...]}`.

    Percents are clipped to [0, 99]; a kind that is left out is at the target; a list of blocks of another length is read as a
    profile over depth and interpolated.

    Raises:
        ReplyError: when the reply cannot be read so.
    """
    reply = parse_json_object(text, ("kinds", "blocks"))
    if not isinstance(reply["kinds"], dict) or not isinstance(reply["blocks"], list):
        raise ReplyError("kinds must be an object and blocks a list")
    named = {parse_kind(name, kinds): parse_percent(value, 0, MAX_PERCENT) for name, value in reply["kinds"].items()}
    if not named:
        raise ReplyError("kinds is empty")
    profile = [parse_percent(value, 0, MAX_PERCENT) for value in reply["blocks"]]
    if len(profile) < min(2, n_blocks):
        raise ReplyError(f"blocks needs {n_blocks} percents, got {len(profile)}")
    return Coordinates({kind: named.get(kind, target_percent) for kind in kinds}, _resample(profile, n_blocks))


def parse_moves(text: str, kinds: Sequence[str], n_blocks: int) -> list[Move]:
    """Reads `{"moves": [{"from": {"block", "kind"}, "to": {"block", "kind"}, "percent"}]}`: the first four that can be read.

    Raises:
        ReplyError: when no move can be read.
    """
    moves: list[Move] = []
    reason = "moves must be a list of moves"
    listed = parse_json_object(text, ("moves",))["moves"]
    for entry in listed if isinstance(listed, list) else []:
        try:
            moves.append(_parse_move(entry, kinds, n_blocks))
        except ReplyError as error:
            reason = str(error)
    if not moves:
        raise ReplyError(reason)
    return moves[:MAX_MOVES]


def parse_percent(value: object, low: float, high: float) -> float:
    """A percent, clipped to [low, high]; `"60"` and `"60%"` count as 60.

    Raises:
        ReplyError: when it is not a finite number.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(value)
        number = float(value.strip().removesuffix("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError) as error:
        raise ReplyError(f"a percent must be a number, got {str(value)[:20]!r}") from error
    if not math.isfinite(number):
        raise ReplyError(f"a percent must be finite, got {number}")
    return min(max(number, low), high)


def parse_kind(name: object, kinds: Sequence[str]) -> str:
    """The kind of this name; an end of it does where one kind alone ends so (`q_proj`, and `q`, for `self_attn.q_proj`).

    Raises:
        ReplyError: when no kind, or more than one, is meant.
    """
    meant = [kind for kind in kinds if kind == name]
    meant = meant or [kind for kind in kinds if f".{kind}".endswith((f".{name}", f".{name}_proj"))]
    if len(meant) != 1:
        raise ReplyError(f"unknown kind {str(name)[:40]!r}; known are {did_you_mean(str(name)[:40], kinds)}")
    return meant[0]


def _object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        end = start + 1
        try:
            value, end = decoder.raw_decode(text, start)
            yield value
        except (ValueError, RecursionError):
            pass
        start = text.find("{", end)


def _parse_move(entry: object, kinds: Sequence[str], n_blocks: int) -> Move:
    if not isinstance(entry, dict) or not {"from", "to", "percent"} <= entry.keys():
        raise ReplyError("a move must have from, to and percent")
    source, destination = (_parse_unit(entry[end], kinds, n_blocks) for end in ("from", "to"))
    return Move(source, destination, parse_percent(entry["percent"], 1, MAX_MOVE_PERCENT))


def _parse_unit(entry: object, kinds: Sequence[str], n_blocks: int) -> tuple[int, str]:
    if not isinstance(entry, dict) or not {"block", "kind"} <= entry.keys():
        raise ReplyError("a unit must have a block and a kind")
    block = parse_percent(entry["block"], -1, n_blocks)
    if block != int(block) or not 0 <= block < n_blocks:
        raise ReplyError(f"a block must be a whole number from 0 to {n_blocks - 1}, got {str(entry['block'])[:20]!r}")
    return int(block), parse_kind(entry["kind"], kinds)


def _resample(profile: Sequence[float], n_blocks: int) -> list[float]:
    """The profile over depth at `n_blocks` points, linear between its own."""
    if len(profile) == n_blocks:
        return list(profile)
    points = []
    for i in range(n_blocks):
        position = i * (len(profile) - 1) / max(n_blocks - 1, 1)
        left = min(int(position), len(profile) - 2)
        points.append(profile[left] + (position - left) * (profile[left + 1] - profile[left]))
    return points
