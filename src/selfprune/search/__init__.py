"""Ask, race, record, tell.

It does not know what a proposer thinks and how a pruner prunes.
"""
