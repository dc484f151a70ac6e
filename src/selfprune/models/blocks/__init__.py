"""The decoder blocks of a model, run one at a time."""
