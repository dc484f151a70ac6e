"""Scores of a pruned model."""
