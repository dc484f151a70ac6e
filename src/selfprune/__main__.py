"""`selfprune` and `python -m selfprune`: composes the config and runs it, or starts another command."""

import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from selfprune.configs.entry import Command

NAME = "python -m selfprune"
COMMANDS = ("cliff", "compare", "gguf", "inspect", "latency", "options", "prune", "sweep", "watch")
"""Modules beside this one, each with a `main`, of which one alone is imported."""


def _load() -> Callable[[Sequence[str]], int]:
    from selfprune.configs.command_line import HydraCommand
    from selfprune.configs.config import RunConfig
    from selfprune.runs.composed_run import run_composed

    return HydraCommand("config", RunConfig, run_composed, _stopped)


def _stopped(interrupt: KeyboardInterrupt) -> str:
    if not interrupt.args:
        return "the run had not begun, and nothing was written"
    return f"nothing that was recorded is lost, continue with `{NAME} {shlex.quote(f'resume={interrupt.args[0]}')}`"


run = Command(_load, _stopped)


def main() -> int:
    """Does what the command line says, or what the command does that it names first: `selfprune prune ...`.

    Returns:
        the exit code: 0, 2 for a user's mistake, 130 when interrupted, 143 when terminated.
    """
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name not in COMMANDS:
        return run()
    command: Command = import_module(f"selfprune.{name}").main
    return command(rest)


if __name__ == "__main__":
    sys.exit(main())
