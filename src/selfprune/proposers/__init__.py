"""Proposers of allocations, one method per file."""
