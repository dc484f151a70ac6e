"""Seconds of units, kernels and prunings on this machine.

It does not know what they are spent for.
"""
