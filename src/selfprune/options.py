"""`python -m selfprune.options [GROUP]`: every option with its type, its default and what it decides."""

import sys
from collections.abc import Callable, Sequence

from selfprune.configs.entry import Command


def _load() -> Callable[[Sequence[str]], int]:
    from selfprune.runs.option_list import show_options

    return show_options


def _stopped(_: KeyboardInterrupt) -> str:
    return "nothing was written"


main = Command(_load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
