"""Methods that propose allocations, by a formula, a search or a language model's replies.

They see units, scores and gradients, and never a weight.
"""
