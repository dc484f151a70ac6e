"""Many runs at once: how far a sweep is, and what its runs come to side by side."""
