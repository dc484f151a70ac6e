"""Finds where to prune a language model, with the language model itself among the proposers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfprune.runs.library.calls import load_run, prune_model, search_allocation

__version__ = "0.1.0"
__all__ = ["load_run", "prune_model", "search_allocation"]


def __getattr__(name: str) -> Any:
    """The functions of the library, which import transformers, when they are first named (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("selfprune.runs.library.calls"), name)
