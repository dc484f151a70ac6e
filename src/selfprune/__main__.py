"""`python -m selfprune`: composes the config and runs it."""

import shlex
import sys
from collections.abc import Callable, Sequence

from selfprune.entry import Command

NAME = "python -m selfprune"


def _load() -> Callable[[Sequence[str]], int]:
    from selfprune.command_line import HydraCommand
    from selfprune.config import RunConfig
    from selfprune.run import run_composed

    return HydraCommand(NAME, "config", RunConfig, run_composed, _stopped)


def _stopped(interrupt: KeyboardInterrupt) -> str:
    if not interrupt.args:
        return "the run had not begun, and nothing was written"
    return f"nothing that was recorded is lost, continue with `{NAME} {shlex.quote(f'resume={interrupt.args[0]}')}`"


main = Command(NAME, _load, _stopped)

if __name__ == "__main__":
    sys.exit(main())
