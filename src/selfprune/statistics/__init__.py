"""What calibration learns about the inputs of a unit.

It does not know which weights go for it.
"""
