"""What a run tells while it works: on the error stream, to a listener, and to trackers of experiments."""
