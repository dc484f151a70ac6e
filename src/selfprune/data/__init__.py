"""From texts to disjoint windows of tokens.

It does not know what the windows are used for.
"""
