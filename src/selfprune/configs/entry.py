"""What every command does before anything large is imported: from here on it can be stopped."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfprune.configs.manual import HELP, VERSION
from selfprune.configs.signals import Stopped, leaving_at_once, stoppable

UNREAD = 141
"""Exit code of a command whose output nobody reads to its end, that of a process that a SIGPIPE ended."""


@dataclass(frozen=True)
class Command:
    """A command of selfprune.

    Attributes:
        load: imports what it needs, and gives what it does with its arguments, which returns the exit code.
        stopped: given an interrupt, what to tell of what is left behind.
    """

    load: Callable[[], Callable[[Sequence[str]], int]]
    stopped: Stopped

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Does what the command line says.

        Args:
            arguments: the command line; that of the process where it is left out.

        Returns:
            the exit code: 0, 2 for a user's mistake, 130 when interrupted, 143 when terminated, 141 when nobody reads on.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # those of transformers, too
        os.environ["HYDRA_FULL_ERROR"] = "1"
        given = sys.argv[1:] if arguments is None else arguments
        for flags, text in ((("--help", "-h"), HELP), (("--version",), f"{VERSION}\n")):
            if any(flag in given for flag in flags):
                sys.stdout.write(text)
                return 0
        with leaving_at_once("nothing was begun"):
            work = self.load()
        try:
            code = stoppable(lambda: work(given), self.stopped)
            sys.stdout.flush()
        except BrokenPipeError:  # as of `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed
            return UNREAD
        return code
