"""Finds where to prune a language model, with the language model itself among the proposers."""

__version__ = "0.1.0"
