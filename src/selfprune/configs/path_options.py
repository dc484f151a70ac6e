"""Reads any path from the command line, whatever Hydra's grammar makes of its letters, and makes it absolute.

Hydra reads a value as a text only if it holds no brackets, commas, quotes, tildes or letters outside ASCII. Which options are
paths stands in their dataclasses (`path_fields`); their overrides are written anew here, before Hydra reads them.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString
from hydra.errors import HydraException

from selfprune.configs.methods import METHODS, find_methods
from selfprune.storage.path_fields import PathKind, path_kind

OVERRIDE = re.compile(r"(\+{0,2})([^=\s'\"]+)=(.*)", re.DOTALL)
PLAIN = re.compile(r"[A-Za-z_/][\w./+:@%-]*", re.ASCII)
"""Values that Hydra reads as they are."""
GROUP_OF = {group: group for group in METHODS} | {"yardsticks": "proposer", "controls": "proposer"}
"""First name of an option of a method -> the group of the method."""


def repaired(override: str, options: type, sweeps: bool) -> str:
    """An override, written so that Hydra reads the path that the user meant.

    Args:
        override: of the command line.
        options: the typed config that is overridden.
        sweeps: whether commas separate the values of a sweep; otherwise they belong to the path.

    Returns:
        the same override where it is none of a path, or sweeps over more than a list of paths.
    """
    match = OVERRIDE.fullmatch(override)
    kind = _kind(match[2], options) if match else None
    if match is None or kind is None or match[3] in ("", "null", "???"):
        return override
    texts = _texts(override, match[3], sweeps)
    return override if texts is None else f"{match[1]}{match[2]}={','.join(written(kind.absolute(text)) for text in texts)}"


def _kind(key: str, options: type) -> PathKind | None:
    first, _, rest = key.partition(".")
    if rest and first in GROUP_OF:
        fields = (f for method in find_methods(GROUP_OF[first]).values() for f in dataclasses.fields(method))
        return next((kind for f in fields if f.name == rest.rpartition(".")[2] and (kind := path_kind(f))), None)
    return dict(path_options(options)).get(key)


def path_options(options: type, prefix: str = "") -> Iterator[tuple[str, PathKind]]:
    """The path options of a typed config: dotted name and kind; those of methods are not among them."""
    hints: dict[str, Any] = get_type_hints(options)
    for f in dataclasses.fields(options):
        if kind := path_kind(f):
            yield prefix + f.name, kind
        elif dataclasses.is_dataclass(hints[f.name]):
            yield from path_options(hints[f.name], f"{prefix}{f.name}.")


def _texts(override: str, value: str, sweeps: bool) -> list[str] | None:
    """What the user meant: one path, or those of a sweep; None where Hydra must expand them."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        parts = re.split(r",(?=(?:[^']*'[^']*')*[^']*$)", value) if sweeps else [value]
        return [re.sub(r"""^(['"])(.*)\1$""", r"\2", part, flags=re.DOTALL) for part in parts]
    inner = parsed._value
    if parsed.is_sweep_override():
        if not sweeps:
            return [value]
        return [_text(element) for element in inner.list] if isinstance(inner, ChoiceSweep) else None
    return [_text(inner) if isinstance(inner, str | QuotedString) else value]


def _text(element: object) -> str:
    return element.text if isinstance(element, QuotedString) else str(element)


def written(text: str) -> str:
    """A value as Hydra reads it back: in quotes where it would take a letter for its own."""
    return text if PLAIN.fullmatch(text) else QuotedString(text, Quote.single).with_quotes()
