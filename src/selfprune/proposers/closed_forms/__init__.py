"""Allocations from a formula, without a search."""
