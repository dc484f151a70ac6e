"""Checkpoints on disk: found, read piece by piece, and counted.

It loads no model.
"""
