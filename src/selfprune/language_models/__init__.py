"""Language models that are asked for allocations."""
