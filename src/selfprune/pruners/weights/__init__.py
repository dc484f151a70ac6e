"""Pruners of single weights, one method per file."""
