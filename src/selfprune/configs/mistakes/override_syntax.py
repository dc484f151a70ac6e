"""What is wrong with an override that cannot be read at all: its name, its brackets or its quotes."""

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

HOW = "options are given as NAME=VALUE, as in budget.sparsity=0.5"
PAIRS = {"(": ")", "[": "]", "{": "}"}


def unreadable(typed: str, read: str) -> str | None:
    """What is wrong with an override that Hydra cannot read; None where it can.

    Args:
        typed: as it was given.
        read: the same, as Hydra is to read it.
    """
    name, equals, value = typed.lstrip("+~").partition("=")
    if not name:
        return f"the name of the option is missing; {HOW}"
    if _is_readable(read):
        return None
    if not equals:
        return f"there is no value; {HOW}"
    if not _is_readable(f"{name}=1"):
        return f"{name} cannot be the name of an option, which holds letters, digits, points and underscores alone; {HOW}"
    return (
        f"the value {value} cannot be read, because {_open(value)}; a list is written as {name}=[a,b], and a text with blanks, "
        f"commas, quotes or brackets in quotes of both kinds, as in {name}=\"'a, b'\""
    )


def _is_readable(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _open(value: str) -> str:
    """What is open or closed in a value without its other half."""
    opened: list[str] = []
    quote = ""
    for letter in value:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in PAIRS:
            opened.append(letter)
        elif letter in PAIRS.values() and (not opened or PAIRS[opened.pop()] != letter):
            return f"it closes by {letter} what was not opened"
    if quote or opened:
        return f"it opens {quote or opened[-1]} and never closes it"
    return "it holds letters that have a meaning of their own"
