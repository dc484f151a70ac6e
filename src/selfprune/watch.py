"""`python -m selfprune.watch RUN`: tokens spent, the best score so far and who found it, until the run is finished."""

import sys
from collections.abc import Callable, Sequence

from selfprune.configs.entry import Command

NAME = "selfprune watch"


def _load() -> Callable[[Sequence[str]], int]:
    from selfprune.runs.sweeps.watching import watch

    return lambda arguments: watch(NAME, arguments)


def _stopped(_: KeyboardInterrupt) -> str:
    return "the run goes on"


main = Command(_load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
