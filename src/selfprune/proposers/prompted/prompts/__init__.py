"""The prompts, one text file each."""

from importlib.resources import files
from string import Template


def fill(name: str, **values: object) -> str:
    """The prompt of this name with its blanks filled, without the line end that files have."""
    text = files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(values).rstrip("\n")
