"""The rows of the report: allocations pruned for good, and what is measured of them."""
