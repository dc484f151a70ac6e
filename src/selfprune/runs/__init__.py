"""One command, from config to report.

It holds the order of the stages, and leaves the work to the rooms above.
"""
