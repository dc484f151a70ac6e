"""Coefficients as a language model reads and writes them: JSON in whole percents."""

from collections.abc import Sequence
from typing import Any

from selfprune.proposers.coefficients import MAX_OFFSET, MAX_SPREAD, Coefficients
from selfprune.proposers.prompted.replies import ReplyError, compact, object_schema, parse_json_object, parse_kind, parse_percent
from selfprune.proposers.prompted.unit_view import UnitView


def show_coefficients(view: UnitView, shown: Coefficients) -> str:
    """The JSON of coefficients, by the short names of the kinds."""
    offset, slope = (
        {view.short[kind]: round(by_kind.get(kind, 0.0)) for kind in view.kinds} for by_kind in (shown.offset, shown.slope)
    )
    edges = {"first": round(shown.first), "last": round(shown.last), "spread": round(shown.spread)}
    return compact({"offset": offset, "slope": slope, **edges})


def coefficients_schema(kinds: Sequence[str]) -> dict[str, Any]:
    """JSON schema of what `parse_coefficients` reads."""
    percent = {"type": "integer", "minimum": -MAX_OFFSET, "maximum": MAX_OFFSET}
    of_kinds = object_schema(dict.fromkeys(kinds, percent))
    spread = {"type": "integer", "minimum": 0, "maximum": MAX_SPREAD}
    return object_schema({"offset": of_kinds, "slope": of_kinds, "first": percent, "last": percent, "spread": spread})


def parse_coefficients(text: str, kinds: Sequence[str], repairs: list[str]) -> Coefficients:
    """Reads `{"offset": {kind: percent}, "slope": {kind: percent}, "first": percent, "last": percent, "spread": percent}`.

    What is left out counts as zero, a spread as 100; percents are clipped.

    Args:
        text: the reply.
        kinds: the kinds that there are.
        repairs: is told what had to be mended.

    Raises:
        ReplyError: when the reply cannot be read so, or says nothing of any kind.
    """
    reply = parse_json_object(text, ("offset",))
    by_name = {name: _parse_by_kind(reply, name, kinds, repairs) for name in ("offset", "slope")}
    if not any(by_name.values()):
        raise ReplyError("offset and slope are empty")
    numbers = {}
    for name, low, high, default in (
        ("first", -MAX_OFFSET, MAX_OFFSET, 0.0),
        ("last", -MAX_OFFSET, MAX_OFFSET, 0.0),
        ("spread", 0, MAX_SPREAD, 100.0),
    ):
        if name not in reply:
            repairs.append(f"{name} left out")
        numbers[name] = parse_percent(reply.get(name, default), low, high, repairs)
    return Coefficients(by_name["offset"], by_name["slope"], **numbers)


def _parse_by_kind(reply: dict[str, Any], name: str, kinds: Sequence[str], repairs: list[str]) -> dict[str, float]:
    percents = reply.get(name, {})
    if not isinstance(percents, dict):
        raise ReplyError(f"{name} must be an object")
    if len(percents) < len(kinds):
        repairs.append(f"{name} of a kind left out")
    return {parse_kind(kind, kinds): parse_percent(value, -MAX_OFFSET, MAX_OFFSET, repairs) for kind, value in percents.items()}
