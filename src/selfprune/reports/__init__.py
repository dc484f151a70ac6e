"""What a reader looks at.

They measure nothing and decide nothing.
"""
