"""The weights of a unit at any level, quickly.

They do not know which level is good.
"""
