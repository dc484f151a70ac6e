"""`python -m selfprune.sweep FOLDER`: which jobs of a sweep are done, at work, failed or missing, and why.

With `--retry-failed` the sweep's command is given again: what is finished stays, all else is worked on.
"""

import sys
from collections.abc import Callable, Sequence

from selfprune.configs.entry import Command

NAME = "selfprune sweep"


def _load() -> Callable[[Sequence[str]], int]:
    from selfprune.runs.sweeps.status import tell_sweep

    return lambda arguments: tell_sweep(NAME, arguments)


def _stopped(_: KeyboardInterrupt) -> str:
    return "what the jobs recorded is kept"


main = Command(_load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
