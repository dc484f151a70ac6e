"""Units, the levels they may take, what these save, candidates, and the record of them.

It knows no torch: everything is whole numbers and scores.
"""
