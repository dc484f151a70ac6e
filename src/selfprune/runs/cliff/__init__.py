"""Knowing when to stop: the damage over the sparsity from few runs, and the highest sparsity that is still safe."""
