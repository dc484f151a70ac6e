"""From the command line to one typed config, with its methods.

It knows which options there are, and does nothing with them.
"""
