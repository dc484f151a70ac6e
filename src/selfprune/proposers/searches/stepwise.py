"""One unit after the other goes, always that whose loss costs least (SLEB, Song et al., 2024, arXiv 2402.09025, algorithm 1).

From the dense model on, the next level of every unit is scored beside all that went before, and the one goes with the least

    rise of the score / what it saves, of what is still to be saved,

until the target is met. SLEB drops blocks of one size; BlockPruner (Zhong et al., 2024, arXiv 2406.10594) does the same with
attentions and FFNs, which save unlike amounts, so that rises are divided by savings here. After the first step, only the units
whose rates were lowest when last looked at are looked at again (lazily, as Minoux, 1978, does for submodular functions).
The ways to take the last step are what is proposed, the best first.

Since a walk cannot take a step back, exchanges follow (as Kernighan and Lin, 1970, mend a partition): around the best candidate
of the search, one unit after the other comes back, and the walk goes on without it to the target again; what looks better is
gone on from. Where the best candidate stays, twice as many windows look at the next exchanges.

Limits: one look for every unit and step, so made for few levels, as of pruning in depth (`pruner.whole=true`); units that only
hurt together are seen as soon as one of them is gone, and an exchange gives back one of them at a time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from selfprune.allocations.candidate import Candidate, Proposal, best
from selfprune.allocations.unit import Allocation
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace
from selfprune.proposers.move_values import MoveOracle

Group = tuple[str, ...]
End = tuple[float, Allocation]
"""What an allocation on the budget looked like before the little that it removed too much came back, and the allocation."""


@dataclass
class Stepwise(ProposerConfig):
    """A walk from the dense model to the budget.

    Attributes:
        n_windows: search windows of a look, the first ones.
        n_looks: units that are looked at for every step but the first, for which all are.
    """

    n_windows: int = 2
    n_looks: int = 4

    def __post_init__(self) -> None:
        if self.n_windows < 1 or self.n_looks < 1:
            raise ConfigError(f"stepwise needs n_windows and n_looks of at least 1, got {self.n_windows} and {self.n_looks}")

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A walk that was not begun.

        Raises:
            ConfigError: when there is nothing to look with.
        """
        if space.move_values is None:
            raise ConfigError("stepwise needs a score that it can look at off the budget, and got none")
        return StepwiseProposer(space, self, space.move_values)


@dataclass
class StepwiseProposer:
    """Walks when it is first asked; what is told changes nothing."""

    space: SearchSpace
    settings: Stepwise
    oracle: MoveOracle
    name: str = field(default="stepwise", init=False)

    def __post_init__(self) -> None:
        target = self.space.target
        self._groups: Sequence[Group] = target.ties or [(name,) for name in target.levels]
        self._rates: dict[Group, float] = {}
        self._best: Candidate | None = None
        self._last_start: Allocation | None = None
        self._n_windows = self.settings.n_windows
        self._scores: dict[tuple[int, ...], float] = {}
        self._n_tokens = 0

    def ask(self, n: int) -> list[Proposal]:
        """At most `n` of the ways to end the walk, or of the exchanges since; none where tokens have run out for them."""
        if self._last_start is None:
            self._last_start = dict.fromkeys(self.space.target.levels, 0)
            operator, ends = "last step", self._walk(self._last_start)
        else:
            operator, ends = "exchange", self._exchanges()
        n_tokens, self._n_tokens = self._n_tokens, 0
        said = [Proposal(end, self.name, operator) for _, end in sorted(ends, key=lambda end: end[0])[:n]]
        return [replace(proposal, proposal_tokens=n_tokens) if not i else proposal for i, proposal in enumerate(said)]

    def tell(self, candidates: list[Candidate]) -> None:
        """Exchanges go on around the best candidate, whoever proposed it."""
        self._best = next(iter(best([*([self._best] if self._best else []), *candidates], 1)), self._best)

    def _walk(self, here: Allocation, kept: Group = ()) -> list[End]:
        """The allocations on the budget that were looked at on the way there; the last one where none could be paid.

        Args:
            here: where it begins.
            kept: a group that does not move, so that there may be no way.
        """
        target, ends = self.space.target, []
        score = self._look(here)
        while (missing := target.n_saved - target.saved(here)) > 0:
            movable = [group for group in self._groups if group != kept]
            steps = {group: step for group in movable if (step := self._moved(here, group, 1)) != here}
            if not steps:
                return []
            gains = {group: min(target.saved(step) - target.saved(here), missing) for group, step in steps.items()}
            looks = self._looks_around(score, steps, gains)
            ends += [(looks[group], self._trimmed(steps[group])) for group in looks if gains[group] == missing]
            chosen = min(looks or steps, key=lambda group: self._rates.get(group, math.inf))
            # by the rates that are known, once tokens have run out
            here, score = steps[chosen], looks.get(chosen)
        return ends or [(math.inf, self._trimmed(here))]

    def _exchanges(self) -> list[End]:
        """What looks better than the best candidate when a unit of it comes back and others go; else the least bad of it."""
        if self._best is None:
            return []
        start = self._best.allocation
        if start == self._last_start:
            self._n_windows, self._scores = 2 * self._n_windows, {}
        self._last_start = start
        first = self._look(start)
        if first is None:
            return []
        score, here, ends = first, start, list[End]()
        gone = [group for group in self._groups if self._moved(here, group, -1) != here]
        for group in sorted(gone, key=lambda group: self._rates.get(group, math.inf), reverse=True):
            fuller = self._moved(here, group, -1)
            if fuller == here:
                continue
            if found := self._walk(fuller, kept=group):
                ends.append(min(found, key=lambda end: end[0]))
                score, here = min((score, here), ends[-1], key=lambda end: end[0])
        return [end for end in ends if end[0] < first] or sorted(ends, key=lambda end: end[0])[:1] or [(first, start)]

    def _trimmed(self, end: Allocation) -> Allocation:
        """An allocation less what it removes beyond the target; what cost most for what it saves comes back first."""
        for group in sorted(self._groups, key=lambda group: self._rates.get(group, math.inf), reverse=True):
            while (denser := self._moved(end, group, -1)) != end and self.space.target.is_met(denser):
                end = denser
        return end

    def _moved(self, here: Allocation, group: Group, n_steps: int) -> Allocation:
        """A group so many levels further; the same allocation where there are none."""
        levels = self.space.target.levels
        return {**here, **{name: levels[name].moved(here[name], n_steps) for name in group}}

    def _looks_around(
        self, score: float | None, steps: Mapping[Group, Allocation], gains: Mapping[Group, int]
    ) -> dict[Group, float]:
        """The scores of the most promising steps, which set their rates; of none where the score they rise from is unknown."""
        looks: dict[Group, float] = {}
        n_looks = self.settings.n_looks if self._rates else len(steps)
        for group in sorted(steps, key=lambda group: self._rates.get(group, math.inf))[:n_looks]:
            found = None if score is None else self._look(steps[group])
            if score is None or found is None:
                break
            looks[group], self._rates[group] = found, (found - score) / gains[group]
        return looks

    def _look(self, allocation: Allocation) -> float | None:
        """The score of an allocation, infinite where it is broken; None where what is left does not pay for it."""
        genome = self.space.grid.genome(allocation)
        if genome not in self._scores:
            look = self.oracle.look(allocation, self._n_windows)
            if look is None:
                return None
            self._n_tokens += look.n_tokens
            self._scores[genome] = look.score if math.isfinite(look.score) else math.inf
        return self._scores[genome]
