"""When what goes: at once, or in several cuts between which the model learns.

With s the sparsities that the allocation ends at, cut i of n, at step i-1 of n-1 equal parts of `share` of all steps, prunes to

    s_i = s · (1 − (1 − i/n)^exponent),

which for an exponent of 3 is the schedule of Zhu & Gupta (2017, arXiv 1710.01878, eq. 1), begun at its first cut.
"""

from dataclasses import dataclass

from selfprune.errors import ConfigError


@dataclass
class Schedule:
    """When what goes.

    Attributes:
        n_cuts: 1 prunes once, before any training.
        exponent: 1 takes as much with every cut; above, the first cuts take more.
        share: of all steps of the training, over which the cuts are spread; the first is made before the first step.
    """

    n_cuts: int = 1
    exponent: float = 1.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.n_cuts < 1 or not self.exponent >= 1 or not 0 < self.share < 1:
            raise ConfigError(
                "a schedule needs schedule.n_cuts and schedule.exponent of at least 1 and schedule.share above 0 and below 1, "
                f"got {self.n_cuts}, {self.exponent:g} and {self.share:g}"
            )

    def cuts(self, n_steps: int) -> dict[int, float]:
        """Step before which there is a cut -> the share of what is to go that is gone then; 1 at the last.

        Args:
            n_steps: of the training; where there are fewer than cuts, those that meet are one.
        """
        spread = self.share * n_steps / max(self.n_cuts - 1, 1)
        return {round(spread * i): 1 - (1 - (i + 1) / self.n_cuts) ** self.exponent for i in range(self.n_cuts)}

    def held_bytes(self, n_parameters: int) -> int:
        """Memory for the weights that were cut, which may come back, and for which they are."""
        return 5 * n_parameters if self.n_cuts > 1 else 0

    def disk_bytes(self, n_parameters: int) -> int:
        """Disk for the same, and for the trained model before it is cut to its size."""
        return 9 * n_parameters if self.n_cuts > 1 else 0
