"""Who asks for allocations to be scored.

They see units, scores and gradients, and never a weight.
"""
