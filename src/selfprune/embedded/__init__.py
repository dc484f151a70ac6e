"""The default model with its world, corpus and tasks, so that everything runs without a network.

It knows nothing of the rest of the package.
"""
