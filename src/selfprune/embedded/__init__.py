"""The embedded model: its world, corpus, tasks and weights, so that everything runs without a network."""
