"""What commands share that take arguments and no config."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from selfprune.errors import ConfigError, SelfpruneError, complain, refused_path


class PlainParser(argparse.ArgumentParser):
    """Tells a wrong argument as any other mistake.

    Args:
        command: how it is called.
        arguments: what it takes, in short.
        description: what it does.
    """

    def __init__(self, command: str, arguments: str, description: str) -> None:
        super().__init__(prog=command, description=description)
        self._arguments = arguments

    def error(self, message: str) -> NoReturn:
        """Raises it.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message}; write {self.prog} {self._arguments}")


def exit_code(work: Callable[[], None]) -> int:
    """Does the work of a command: 0, or 2 for a user's mistake, told in one paragraph.

    Args:
        work: may raise what `SelfpruneError` stands for, or be refused a path by the system.
    """
    try:
        work()
    except SelfpruneError as error:
        return complain(str(error))
    except OSError as error:
        if (refusal := refused_path(error)) is None:
            raise
        return complain(refusal)
    return 0
