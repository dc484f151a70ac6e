"""Pruners, one method per file."""
