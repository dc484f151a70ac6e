"""Allocations from the replies of a language model."""
