"""Reads the replies of language models, which may have been sampled without constraints."""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from selfprune.errors import SelfpruneError, did_you_mean

MAX_PERCENT = 99
MAX_CHARACTERS = 20_000
N_QUOTED_CHARACTERS = 200


class ReplyError(SelfpruneError):
    """A reply that no allocation can be read from."""

    def quoting(self, text: str) -> str:
        """The reason, and the beginning of the reply."""
        return f"{self}: {text[:N_QUOTED_CHARACTERS]}"


def parse_json_object(text: str, keys: Collection[str]) -> dict[str, Any]:
    """The first balanced JSON object in a text that has all these keys, whatever stands around it.

    Raises:
        ReplyError: when there is none.
    """
    for value in _json_objects(text[:MAX_CHARACTERS]):
        if all(key in value for key in keys):
            return value
    raise ReplyError(f"no JSON object with {', '.join(keys)}")


def parse_percent(value: object, low: float, high: float, repairs: list[str] | None = None) -> float:
    """A percent, clipped to [low, high]; `"60"` and `"60%"` count as 60.

    Args:
        value: what stands in the reply.
        low: the least percent.
        high: the highest.
        repairs: is told what had to be mended.

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
    if repairs is not None and isinstance(value, str):
        repairs.append("a number in quotes")
    if repairs is not None and not low <= number <= high:
        repairs.append("a percent clipped")
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


def compact(value: object) -> str:
    """JSON without white space."""
    return json.dumps(value, separators=(",", ":"))


def object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of an object that has exactly these properties."""
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
