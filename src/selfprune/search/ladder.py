"""The ladder of a race: how many windows each rung has, and who goes on.

Rungs are nested, or drawn afresh for every race as in EvoPress (Sieberling et al., 2024, arXiv 2410.14649).
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

from selfprune.errors import ConfigError


@dataclass
class Ladder:
    """How much is spent on whom.

    Attributes:
        n_windows: windows of each rung, rising, before `scale`.
        n_survivors: candidates that go on after each rung but the last, falling.
        z_worse: a candidate whose paired difference to the best of the rung exceeds this many standard errors goes no further,
            whatever its rank.
        z_better: while rungs are closed, an incumbent must be beaten by this many standard errors, or else the next rung opens.
        grows: begin with the first rung alone; one more opens whenever a race brings no clear gain.
        fresh: draw the windows of every rung anew for every race, instead of nested ones that stay.
        scale: multiplies `n_windows`, for the same ladder at another cost.
    """

    n_windows: list[int] = field(default_factory=lambda: [8, 32, 64])
    n_survivors: list[int] = field(default_factory=lambda: [4, 2])
    z_worse: float = 3.0
    z_better: float = 1.0
    grows: bool = True
    fresh: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0 or math.isinf(self.scale):
            raise ConfigError(f"search.ladder.scale must be positive and finite, got {self.scale}; 1 leaves the ladder as it is")
        rising = all(a < b for a, b in pairwise(self.rungs))
        if not self.rungs or self.rungs[0] < 1 or not rising or len(self.n_survivors) != len(self.rungs) - 1:
            raise ConfigError(
                "search.ladder needs rising n_windows and one n_survivors fewer than rungs, "
                f"got {self.rungs} and {self.n_survivors}; for example [4, 16, 64] and [5, 2]"
            )
        if any(n < 1 for n in self.n_survivors):
            raise ConfigError(f"search.ladder.n_survivors must be at least 1 each, got {self.n_survivors}")
        for name in ("z_worse", "z_better"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"search.ladder.{name} must not be negative, got {getattr(self, name)}")
        if self.fresh and self.grows:
            raise ConfigError("search.ladder.fresh draws all rungs for every race; give search.ladder.grows=false with it")

    @property
    def rungs(self) -> list[int]:
        """Windows of each rung, scaled."""
        return [max(min(n, 1), round(n * self.scale)) for n in self.n_windows]

    def most_windows(self, n_candidates: int, n_rungs: int) -> int:
        """Windows that so many candidates are scored on at most, on the first nested rungs."""
        entrants = [n_candidates, *(min(n, n_candidates) for n in self.n_survivors)]
        rises = [high - low for low, high in pairwise([0, *self.rungs])]
        return sum(n * rise for n, rise in zip(entrants[:n_rungs], rises[:n_rungs], strict=True))
