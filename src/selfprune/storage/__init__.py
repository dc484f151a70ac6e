"""Files that appear whole, are resumed, locked and read back with care, and what this machine is.

It knows nothing of models and of searches.
"""
