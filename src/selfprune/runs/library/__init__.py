"""selfprune from Python: models and tokenizers in, pruned models and reports out."""
