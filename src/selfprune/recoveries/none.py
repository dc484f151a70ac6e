"""No recovery: what stays is left as the pruner left it."""

from dataclasses import dataclass

from selfprune.pruners.base import Pruner
from selfprune.recoveries.base import Recovery


@dataclass
class NoRecovery(Recovery):
    """Nothing is repaired."""

    def around(self, pruner: Pruner) -> Pruner:
        """The pruner itself."""
        return pruner
