"""`python -m selfprune.inspect FOLDER`: the zeros of any Hugging Face checkpoint on disk, counted without loading the model.

With `--speed` the model is loaded, and timed as it is and with the fastest of torch's kernels for every matrix.
"""

import sys
from collections.abc import Callable, Sequence

from selfprune.configs.entry import Command

NAME = "selfprune inspect"


def _load() -> Callable[[Sequence[str]], int]:
    from selfprune.runs.inspection import inspect_checkpoint

    return lambda arguments: inspect_checkpoint(NAME, arguments)


def _stopped(_: KeyboardInterrupt) -> str:
    return "nothing was written"


main = Command(_load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
