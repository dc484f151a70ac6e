"""What an option takes, in plain words, as the type of its dataclass field says it."""

import dataclasses
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from selfprune.errors import did_you_mean

ONE = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
MANY = {float: "numbers", int: "whole numbers", bool: "true or false", str: "texts"}
EXAMPLES = {float: "0.1,0.2", int: "1,2", bool: "true,false", str: "a,b"}


def expectation(of: Any, name: str, got: str) -> str:
    """What an option takes.

    Args:
        of: the type of its field.
        name: dotted name of the option.
        got: what was given, for the order of the names that it may take.
    """
    origin, arguments = get_origin(of), get_args(of)
    if dataclasses.is_dataclass(of):
        return f"options of its own ({', '.join(f'{name}.{f.name}' for f in dataclasses.fields(of) if f.init)})"
    if isinstance(of, type) and issubclass(of, Enum):
        return f"one of {did_you_mean(got.upper(), of.__members__)}"
    if type(None) in arguments:
        (some,) = (argument for argument in arguments if argument is not type(None))
        return f"{expectation(some, name, got)}, or null"
    if origin in (list, tuple):
        if isinstance(arguments[0], type) and issubclass(arguments[0], Enum):
            names = list(arguments[0].__members__)
            return f"a list of {', '.join(names)}, as in {name}=[{','.join(names[:2])}]"
        return f"a list of {MANY.get(arguments[0], 'values')}, as in {name}=[{EXAMPLES.get(arguments[0], 'a,b')}]"
    if origin is dict:
        return f"names with {MANY.get(arguments[1], 'options')}, as in {name}.NAME={'OPTION' if arguments[1] is Any else 'VALUE'}"
    return ONE.get(of, "another value")


def field_type(config: DictConfig, name: str) -> Any:
    """The type of an option's field; None where no dataclass has it.

    Args:
        config: as composed.
        name: dotted name of the option.
    """
    parent, _, last = name.rpartition(".")
    node = node_of(config, parent)
    kind = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    return get_type_hints(kind).get(last) if dataclasses.is_dataclass(kind) else None


def node_of(config: DictConfig, name: str) -> Any:
    """What stands under a dotted name, unresolved; None where nothing does."""
    node: Any = config
    for part in filter(None, name.split(".")):
        if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or part not in node.keys():  # noqa: SIM118
            return None
        node = node._get_node(part)
    return node


def names_in(node: Any) -> list[str]:
    """The names of the options within a node: those of its dataclass, or those that a mapping holds."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return []
    kind = OmegaConf.get_type(node)
    return [f.name for f in dataclasses.fields(kind) if f.init] if dataclasses.is_dataclass(kind) else [str(key) for key in node]


def all_names(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of every option within a node."""
    for name in names_in(node):
        yield prefix + name
        inner = node_of(node, name)
        if not isinstance(inner, ListConfig):
            yield from all_names(inner, f"{prefix}{name}.")
