"""The walk that gathers, and the walk that prunes for good.

It does not choose the allocation.
"""
