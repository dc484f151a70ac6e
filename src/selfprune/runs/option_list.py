"""Every option with its type, its default and the sentence of its docstring, as the dataclasses say them."""

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_type_hints

from selfprune.configs.config import PruneConfig, RunConfig
from selfprune.configs.methods import METHODS, find_methods
from selfprune.errors import complain, did_you_mean
from selfprune.runs.latency_measurement import LatencyConfig

ENTRY = re.compile(r"^(\w+): (.*(?:\n {4,}.*)*)", re.MULTILINE)


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
        name: dotted, as on the command line.
        kind: its type, or the names that it may take.
        default: as on the command line.
        sentence: what it decides.
    """

    name: str
    kind: str
    default: str
    sentence: str


def options_of(config: type, prefix: str = "") -> Iterator[Option]:
    """The options of a typed config and of those within it."""
    hints: dict[str, Any] = get_type_hints(config)
    for f in (f for f in dataclasses.fields(config) if f.init):
        kind = hints[f.name]
        if dataclasses.is_dataclass(kind):
            yield from options_of(kind, f"{prefix}{f.name}.")  # type: ignore[arg-type]
        elif kind is not Any:
            yield Option(prefix + f.name, _kind(kind), _default(f), _sentence(config, f.name))


def sections() -> Iterator[tuple[str, str, list[Option]]]:
    """Group, heading and options: of the run, of the other commands, and of every method."""
    groups: dict[str, list[Option]] = {}
    for option in options_of(RunConfig):
        first, dot, _ = option.name.partition(".")
        groups.setdefault(first if dot else "run", []).append(option)
    yield from ((group, group, options) for group, options in groups.items())
    for name, config in (("prune", PruneConfig), ("latency", LatencyConfig)):
        yield name, f"{name} (besides model, data and budget)", [o for o in options_of(config) if "." not in o.name]
    for group in METHODS:
        for name, method in find_methods(group).items():
            yield group, f"{group}={name}", list(options_of(method, f"{group}."))


def show_options(arguments: Sequence[str]) -> int:
    """Prints the options of all groups, or of those that are named.

    Returns:
        the exit code: 0, or 2 when there is no such group.
    """
    found = list(sections())
    known = list(dict.fromkeys(group for group, _, _ in found))
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        return complain(f"there is no group {unknown[0]}; the groups, nearest first: {did_you_mean(unknown[0], known)}")
    for group, heading, options in found:
        if not arguments or group in arguments:
            sys.stdout.write("\n".join([heading, *map(_lines, options), "", ""]))
    return 0


def _lines(option: Option) -> str:
    sentence = textwrap.fill(option.sentence, 100, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    return f"  {option.name}={option.default}  ({option.kind})\n{sentence}"


def _kind(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(kind.__members__)
    return kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", None) else str(kind).replace("typing.", "")


def _default(of: "dataclasses.Field[Any]") -> str:
    value = of.default if of.default_factory is dataclasses.MISSING else of.default_factory()
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "" if value is dataclasses.MISSING else str(value).replace("'", "").replace(", ", ",")


def _sentence(config: type, name: str) -> str:
    """What the Attributes section of a class, or of one that it derives from, says of an option."""
    for kind in config.__mro__:
        _, _, attributes = (inspect.cleandoc(kind.__doc__ or "")).partition("Attributes:\n")
        for found, said in ENTRY.findall(textwrap.dedent(attributes.partition("\n\n")[0])):
            if found == name:
                return " ".join(str(said).split())
    return ""
