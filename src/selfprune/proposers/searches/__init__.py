"""Allocations from the scores of earlier ones."""
