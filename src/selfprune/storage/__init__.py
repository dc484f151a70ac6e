"""Files that appear whole, are resumed, locked and read back with care, and what a run ran on.

It knows nothing of models and of searches.
"""
