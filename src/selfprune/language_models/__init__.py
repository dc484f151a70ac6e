"""Models that complete prompts, local or behind an endpoint, and a record of every call.

They do not know what the prompts are about.
"""
