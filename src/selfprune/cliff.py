"""`python -m selfprune.cliff FOLDER`: how far a model can be pruned before it is damaged, from few runs.

python -m selfprune.cliff runs/my_cliff
python -m selfprune.cliff runs/my_cliff --max-kl 0.1 --from 0.2 --to 0.7 pruner=obs
"""

import sys
from collections.abc import Callable, Sequence

from selfprune.configs.entry import Command

NAME = "selfprune cliff"


def _load() -> Callable[[Sequence[str]], int]:
    from selfprune.runs.cliff.walk import tell_cliff

    return lambda arguments: tell_cliff(NAME, arguments)


def _stopped(_: KeyboardInterrupt) -> str:
    return "nothing that was recorded is lost; give the same command again"


main = Command(_load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
