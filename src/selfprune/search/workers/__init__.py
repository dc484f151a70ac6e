"""Several processes at one search: each holds the model, and what a race or a gradient needs next is dealt out among them.

Processes of this machine are forked once all levels are known, so that they share the memory of the dense weights, the levels and
the windows; each has of its own the weights that it prunes, and hidden states. Those of Ray have all for themselves. What they
measure is the same to the bit as in one process of one thread, and is recorded in the same order. The archive is the same, too.

A process that is killed ends the whole pool, as in every executor of Python; all are started anew and do again what was asked.

Limits: a process that has begun to use a GPU cannot be forked. Every process keeps built levels for itself, in memory alone.
"""
