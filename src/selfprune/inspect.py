"""`python -m selfprune.inspect FOLDER`: the zeros of any Hugging Face checkpoint on disk, counted without loading the model."""

import sys
from collections.abc import Callable, Sequence

from selfprune.configs.entry import Command

NAME = "selfprune inspect"


def _load() -> Callable[[Sequence[str]], int]:
    from selfprune.checkpoints.census_tables import show_census

    return lambda arguments: show_census(NAME, arguments)


def _stopped(_: KeyboardInterrupt) -> str:
    return "nothing was written"


main = Command(_load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
