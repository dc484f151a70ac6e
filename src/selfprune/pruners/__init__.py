"""Which weights of a unit go, and what those that stay become.

They know one matrix at a time, no model and no search.
"""
