"""Scores of a pruned model, on windows of tokens and on tasks.

They do not know how it was pruned.
"""
