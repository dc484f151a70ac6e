"""What a search minimises: the evaluator's score over a mixture of windows of several kinds of text.

Every window counts alike, so a kind's share of the objective is its share of the windows. They are interleaved such that
every prefix of the windows, and so every rung of a ladder, keeps to the shares.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

from selfprune.allocations.unit import Allocation
from selfprune.errors import ConfigError

LATENCY = "latency_seconds"


@dataclass
class Objective:
    """Relative shares of the search windows; they need not add up to 1.

    Attributes:
        text: windows of the search text.
        self_generated: text that the dense model writes itself.
        tasks: documents of `harness.search_tasks` with their right answers.
    """

    text: float = 1.0
    self_generated: float = 0.0
    tasks: float = 0.0

    def __post_init__(self) -> None:
        for name, share in self._given().items():
            if not 0 <= share < math.inf:
                raise ConfigError(f"objective.{name} must be a finite share of 0 or more, got {share}; 0 leaves that text out")
        if not any(self._given().values()):
            raise ConfigError(
                "objective.text, objective.self_generated and objective.tasks are all 0, so that nothing would be minimised; "
                "give one of them a share, such as objective.text=1"
            )

    def shares(self) -> dict[str, Fraction]:
        """Kind -> its share of the windows, for the kinds that have one; they add up to 1."""
        given = {name: Fraction(str(share)) for name, share in self._given().items() if share}
        total = sum(given.values())
        return {name: share / total for name, share in given.items()}

    def kinds(self, n_windows: int) -> list[str]:
        """The kind of every window, in their order.

        Args:
            n_windows: how many windows there are.
        """
        return interleave(self.shares(), n_windows)

    def check(self, n_windows: int, search_tasks: Sequence[str]) -> None:
        """Checks the shares against what they are shares of.

        Args:
            n_windows: how many windows there are.
            search_tasks: lm-eval tasks of the search.

        Raises:
            ConfigError: when a share has no whole window, or no documents.
        """
        if self.tasks and not search_tasks:
            raise ConfigError(
                f"objective.tasks={self.tasks:g} asks for windows of lm-eval documents, but harness.search_tasks is empty; name "
                "tasks there, or give objective.tasks=0"
            )
        found = self.kinds(n_windows)
        for name, share in self.shares().items():
            if name not in found:
                raise ConfigError(
                    f"objective.{name} is {float(share):.2%} of {n_windows} search windows, which is none of them; raise the "
                    "share or search.ladder.n_windows, or give it 0"
                )

    def _given(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def interleave(shares: Mapping[str, Fraction], n: int) -> list[str]:
    """A sequence of names in which every prefix holds the shares to less than one whole.

    So a prefix has a name's exact share wherever that is a whole number. This is the chairman assignment of Tijdeman (1980):
    with K names no prefix is off by more than 1 - 1/(2K - 2). The next name is, among those that lag behind by at least
    1/(2K - 2), the one that would be the first to lag too far.

    Args:
        shares: name -> positive share; together 1.
        n: length of the sequence.
    """
    if len(shares) == 1:
        return list(shares) * n
    slack = Fraction(1, 2 * len(shares) - 2)
    counts = dict.fromkeys(shares, 0)
    sequence: list[str] = []
    for length in range(1, n + 1):
        lags = {name: length * share - counts[name] for name, share in shares.items()}
        time_left = {name: (1 - slack - lags[name]) / shares[name] for name in shares if lags[name] >= slack}
        sequence.append(min(time_left, key=time_left.__getitem__))
        counts[sequence[-1]] += 1
    return sequence


@dataclass(frozen=True)
class ObjectiveValues:
    """What candidates are judged by besides their score: the mean of every kind of window, and seconds where they count.

    Attributes:
        kinds: of every window.
        seconds: what an allocation would take; None where the budget is no latency.

    Example:
        >>> ObjectiveValues(["text", "tasks"]).of(allocation, {0: 0.3, 1: 0.5})
        {'text': 0.3, 'tasks': 0.5}
    """

    kinds: Sequence[str] = ()
    seconds: Callable[[Allocation], float] | None = None

    def of(self, allocation: Allocation, scores: Mapping[int, float]) -> dict[str, float]:
        """Name -> value, lower is better; empty where there is no other objective than the score.

        Args:
            allocation: what was scored.
            scores: window -> its score.
        """
        names = list(dict.fromkeys(self.kinds))
        if len(names) + (self.seconds is not None) < 2:
            return {}
        found: dict[str, list[float]] = {name: [] for name in names}
        for window, score in scores.items():
            if self.kinds:
                found[self.kinds[window]].append(score)
        means = {name: math.fsum(values) / len(values) for name, values in found.items() if values}
        return means | ({LATENCY: self.seconds(allocation)} if self.seconds is not None else {})
