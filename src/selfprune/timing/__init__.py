"""Seconds of units, kernels and prunings on this machine, and what a command takes of it.

It does not know what they are spent for.
"""
