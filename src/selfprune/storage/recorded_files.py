"""Files that were recorded earlier are not trusted: each is read against the schema that its writer states, or refused in words.

A schema is a `TypedDict` beside the code that writes the file, and the writer's own records are checked against it too, so that
writer and reader cannot drift apart. Values keep their types: `true` is no number and `"5"` no 5.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, InstanceOf, TypeAdapter, ValidationError

from selfprune.errors import ConfigError, SelfpruneError

Kind = TypeVar("Kind")

MAX_MAGNITUDE = 1e300
"""Beyond what any measurement gives, and small enough for sums of many such numbers."""


def _check_magnitude(number: float) -> float:
    if MAX_MAGNITUDE < abs(number) < float("inf"):
        raise ValueError(f"is a number beyond {MAX_MAGNITUDE:g}, which no measurement gives")
    return number


EXPECTED = {
    "dict_type": "an object", "list_type": "a list", "int_type": "a whole number", "float_type": "a number",
    "string_type": "a text", "is_instance_of": "a text", "bool_type": "true or false", "none_required": "null",
    "too_short": "longer", "too_long": "shorter",
}  # fmt: skip
"""Type of an error of pydantic -> what is expected, in the terms of JSON."""
Text = InstanceOf[str]
"""Any text, also one with half a character that a language model wrote, which pydantic's own type refuses."""
Count = Annotated[int, Field(ge=0)]
Score = Annotated[float, AfterValidator(_check_magnitude)]
"""A measurement, which may be infinite or no number where a model broke."""
Metrics = dict[str, bool | int | float | Text | list[Text | float] | None]
"""Name -> value, of a task of lm-eval."""
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def read_json(path: Path, kind: type[Kind], remedy: str, error: type[SelfpruneError] = ConfigError, extra: bool = False) -> Kind:
    """A JSON file of one kind.

    Args:
        path: the file.
        kind: its schema, a type that pydantic knows.
        remedy: what to do when it cannot be read.
        error: what to raise then.
        extra: whether keys that the schema lacks are kept instead of refused, for files of which only a part is read.

    Raises:
        SelfpruneError: when it is missing, no JSON, or of another kind; the message names the file and the place in it.
    """
    return parsed(read_bytes(path, remedy, error), kind, str(path), remedy, error, extra)


def parsed(
    content: bytes, kind: type[Kind], place: str, remedy: str, error: type[SelfpruneError] = ConfigError, extra: bool = False
) -> Kind:
    """JSON of one kind.

    Args:
        content: the JSON.
        kind: its schema.
        place: where it was read, for the message.
        remedy: what to do when it is something else.
        error: what to raise then.
        extra: whether keys that the schema lacks are kept instead of refused.

    Raises:
        SelfpruneError: when it is no JSON or of another kind; the message says where and what was got.
    """
    return checked(_parsed(content, place, remedy, error), kind, place, remedy, error, extra)


def read_json_lines(
    path: Path, kind: type[Kind], remedy: str, error: type[SelfpruneError] = ConfigError, n_lines: int | None = None
) -> list[Kind]:
    """A file of JSON lines, each of one kind.

    Args:
        path: the file.
        kind: the schema of a line.
        remedy: what to do when it cannot be read.
        error: what to raise then.
        n_lines: only so many lines, from the first.

    Raises:
        SelfpruneError: when it is missing or a line is no JSON or of another kind; the message names the file and the line.
    """
    lines = parsed_lines(read_bytes(path, remedy, error), path, remedy, error, n_lines)
    return [checked(line, kind, at_line(path, i), remedy, error) for i, line in enumerate(lines)]


def read_text(path: Path, remedy: str, error: type[SelfpruneError] = ConfigError) -> str:
    """A file of UTF-8 text.

    Args:
        path: the file.
        remedy: what to do when it cannot be read.
        error: what to raise then.

    Raises:
        SelfpruneError: when it is missing or something else.
    """
    try:
        return read_bytes(path, remedy, error).decode("utf-8")
    except UnicodeDecodeError as wrong:
        raise _refusal(str(path), f"it must be text in UTF-8, but byte {wrong.start} is none", remedy, error) from wrong


def read_bytes(path: Path, remedy: str, error: type[SelfpruneError] = ConfigError) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        remedy: what to do when it cannot be read.
        error: what to raise then.

    Raises:
        SelfpruneError: when it cannot be read.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as wrong:  # Python's own error for a path with a null character
        raise _refusal(str(path), getattr(wrong, "strerror", None) or str(wrong), remedy, error) from wrong


def parsed_lines(
    content: bytes, path: Path, remedy: str, error: type[SelfpruneError] = ConfigError, n_lines: int | None = None
) -> Iterator[Any]:
    """The JSON values of lines.

    Args:
        content: the lines.
        path: the file that they were read from.
        remedy: what to do when one is no JSON.
        error: what to raise then.
        n_lines: only so many lines, from the first.

    Raises:
        SelfpruneError: when a line is no JSON; the message names the file and the line.
    """
    for i, line in enumerate(content.splitlines()[:n_lines]):
        yield _parsed(line, at_line(path, i), remedy, error)


def checked(
    value: Any,
    kind: type[Kind],
    place: str,
    remedy: str,
    error: type[SelfpruneError] = ConfigError,
    extra: bool = False,
) -> Kind:
    """A value that was read, if it is of a kind.

    Args:
        value: what was read.
        kind: its schema.
        place: where it was read, for the message.
        remedy: what to do when it is of another kind.
        error: what to raise then.
        extra: whether keys that the schema lacks are kept instead of refused.

    Raises:
        SelfpruneError: when it is of another kind; the message says where and what was got.
    """
    try:
        return conforming(value, kind, extra)
    except ValidationError as wrong:
        raise _refusal(place, _told(wrong), remedy, error) from wrong


def conforming(value: Any, kind: type[Kind], extra: bool = False) -> Kind:
    """A value, if it is of a kind.

    Args:
        value: any.
        kind: its schema.
        extra: whether keys that the schema lacks are kept instead of refused.

    Raises:
        pydantic.ValidationError: when it is not.
    """
    allowed: Literal["allow", "forbid"] = "allow" if extra else "forbid"
    schema: Any = kind  # no type of mypy's stands for a TypedDict's class
    found: Kind = _adapter(schema).validate_python(value, strict=True, extra=allowed)
    return found


def at_line(path: Path, index: int) -> str:
    """The place of a line, counted from 0, in the words of an error message."""
    return f"{path}, line {index + 1},"


def brief(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _parsed(content: bytes, place: str, remedy: str, error: type[SelfpruneError]) -> Any:
    try:
        return json.loads(content)
    except RecursionError as wrong:
        raise _refusal(place, "it is nested too deep", remedy, error) from wrong
    except ValueError as wrong:
        raise _refusal(place, f"it is no JSON ({wrong})", remedy, error) from wrong


def _told(wrong: ValidationError) -> str:
    """The first thing that is wrong."""
    first = wrong.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])) or "it"
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "extra_forbidden":
        return f"{where} is a key that is not known there"
    said = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    must = f"must be {EXPECTED[first['type']]}" if first["type"] in EXPECTED else said
    return f"{where} {must}, got {brief(first['input'])}"


def _refusal(place: str, reason: str, remedy: str, error: type[SelfpruneError]) -> SelfpruneError:
    return error(f"{place} cannot be read back: {reason}; {remedy}")
