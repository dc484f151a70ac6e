"""Who is asked for allocations.

They complete prompts, and do not know what the prompts are about.
"""
