"""A loaded model, what it consists of, and how its blocks are run one by one.

It does not know what pruning is.
"""
