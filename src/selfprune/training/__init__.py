"""What a pruned model learns again, by training after it was pruned.

It knows models, windows and metrics, and neither how a model was pruned nor what a run is.
"""
