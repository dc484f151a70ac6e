"""`python -m selfprune.gguf FOLDER FILE`: a checkpoint as one file for llama.cpp.

python -m selfprune.gguf runs/MY_RUN/model small.gguf
"""

import sys
from collections.abc import Callable, Sequence

from selfprune.configs.entry import Command

NAME = "selfprune gguf"


def _load() -> Callable[[Sequence[str]], int]:
    from selfprune.runs.conversion import convert

    return lambda arguments: convert(NAME, arguments)


def _stopped(_: KeyboardInterrupt) -> str:
    return "no file was written"


main = Command(_load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
