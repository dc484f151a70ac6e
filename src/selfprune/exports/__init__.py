"""Checkpoints written: block by block or as a whole, with every tensor and file of their source.

It does not decide which weights are zero.
"""
