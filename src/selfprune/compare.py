"""`python -m selfprune.compare FOLDER...`: finished runs in one table, means over seeds and paired differences.

python -m selfprune.compare runs/sweep_1a2b3c4d --against uniform
python -m selfprune.compare runs --rows winner --format latex
"""

import sys
from collections.abc import Callable, Sequence

from selfprune.configs.entry import Command

NAME = "selfprune compare"


def _load() -> Callable[[Sequence[str]], int]:
    from selfprune.runs.sweeps.side_by_side import tell_comparison

    return lambda arguments: tell_comparison(NAME, arguments)


def _stopped(_: KeyboardInterrupt) -> str:
    return "nothing was written"


main = Command(_load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
