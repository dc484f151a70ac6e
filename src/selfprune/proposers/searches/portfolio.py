"""Several proposers share the candidates of a search; each is told of all, and those that earn more per token are asked more.

An arm's credit is the fall of the incumbent's score that its proposals brought, over the tokens that they cost, of gradients too;
older rounds count less. Every round deals out slots in proportion to credit, but for a part that keeps to the first
shares, so that no arm is written off for good (probability matching with exploration; Auer et al., 2002, SIAM J. Comput. 32).

Limits: a gain counts for the arm that brought it, not for those that prepared it.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from selfprune.allocations.candidate import Candidate, Proposal
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Measurement, Proposer, ProposerConfig, SearchSpace

PRIOR = 0.25
"""Tokens that every arm is taken to have spent at the mean rate, as a share of what an arm spends on average."""


@dataclass
class Portfolio(ProposerConfig):
    """Arms and their shares.

    Attributes:
        arms: name -> the settings of a proposer.
        shares: name -> first share of every round, relative; 1 where not named.
        explore: part of every round that keeps to the first shares; 1 turns credit off.
        memory: weight of a round's credit after one more round.
        quantum: proposals that an arm is asked for at least; gradients and replies of a language model pay only for several.
    """

    arms: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    explore: float = 0.25
    memory: float = 0.9
    quantum: int = 4

    def __post_init__(self) -> None:
        wrong = [name for name, arm in self.arms.items() if not isinstance(arm, ProposerConfig)]
        if wrong:
            raise ConfigError(
                f"the arms of a portfolio must be proposers, but {', '.join(wrong)} is none; an arm is added as in "
                f"+proposer@proposer.arms.{wrong[0]}=random"
            )
        if any(share < 0 for share in self.shares.values()):
            raise ConfigError(f"the shares of a portfolio must not be negative, got {self.shares}")
        unknown = [name for name in self.shares if name not in self.arms]
        if self.arms and (unknown or not any(self.share(name) > 0 for name in self.arms)):
            raise ConfigError(
                f"the shares of a portfolio must name its arms and leave one of them above 0, got {self.shares}; its arms are "
                f"{', '.join(self.arms)}, and an arm is left out by a share of 0"
            )
        if not (0 <= self.explore <= 1 and 0 <= self.memory <= 1 and self.quantum >= 1):
            raise ConfigError(
                "a portfolio needs explore and memory in [0, 1] and a quantum of at least 1, "
                f"got {self.explore}, {self.memory} and {self.quantum}"
            )

    def share(self, name: str) -> float:
        """An arm's first share, before all are scaled to one; 0 leaves it out."""
        return self.shares.get(name, 1.0)

    @property
    def asks_language_model(self) -> bool:
        """Whether an arm does that has a share."""
        return any(arm.asks_language_model for arm in self.sharing())

    @property
    def needs_sensitivities(self) -> bool:
        """Whether an arm does that has a share."""
        return any(arm.needs_sensitivities for arm in self.sharing())

    @property
    def first_looks(self) -> tuple[int, int]:
        """Those of the arm that needs the most."""
        return max((arm.first_looks for arm in self.sharing()), key=math.prod, default=(0, 0))

    @property
    def looks_left_out(self) -> dict[str, tuple[int, int]]:
        """What remains without the arms that need the most, then without the next, as long as an arm is left."""
        sharing = {name: arm for name, arm in self.arms.items() if self.share(name) > 0}
        names = sorted(sharing, key=lambda name: -math.prod(sharing[name].first_looks))
        left_out = {}
        for n in range(1, len(names)):
            rest = max((sharing[name].first_looks for name in names[n:]), key=math.prod)
            left_out[" ".join(f"shares.{name}=0" for name in names[:n])] = rest
        return left_out

    def measurements(self) -> list[Measurement]:
        """Those of all arms that have a share."""
        return [measurement for arm in self.sharing() for measurement in arm.measurements()]

    def sharing(self) -> list[ProposerConfig]:
        """The arms that have a share."""
        return [arm for name, arm in self.arms.items() if self.share(name) > 0]

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """Every arm with a seed of its own.

        Raises:
            ConfigError: when there is no arm.
        """
        if not self.arms:
            raise ConfigError("a portfolio needs at least one arm, got none; see conf/proposer/portfolio.yaml")
        arms = {
            name: arm.build(space, seed * 1009 + i, language_model)
            for i, (name, arm) in enumerate(self.arms.items())
            if self.share(name) > 0
        }
        return PortfolioProposer(arms, {name: self.share(name) for name in arms}, self)


@dataclass
class _Credit:
    """What an arm gained and spent, older rounds counting less."""

    gain: float = 0.0
    n_tokens: float = 0.0


@dataclass
class PortfolioProposer:
    """Deals every round out to its arms; the slots of an arm that has nothing to say go to the others."""

    arms: dict[str, Proposer]
    shares: dict[str, float]
    settings: Portfolio = field(default_factory=Portfolio)
    name: str = field(default="portfolio", init=False)

    def __post_init__(self) -> None:
        total = sum(self.shares.values())
        self.shares = {name: share / total for name, share in self.shares.items()}
        self._owed = dict.fromkeys(self.arms, 0.0)
        self._credits = {name: _Credit() for name in self.arms}
        self._asked: list[str] = []

    def ask(self, n: int) -> list[Proposal]:
        """At most `n`; none when no arm has more to say."""
        proposals: list[Proposal] = []
        self._asked = []
        willing = list(self.arms)
        n_left = n
        while n_left > 0 and willing:
            for name, n_asked in self._deal(n_left, willing).items():
                said = self.arms[name].ask(n_asked)
                proposals += said
                self._asked += [name] * len(said)
                if said:
                    n_left -= n_asked
                else:
                    willing.remove(name)
        return proposals

    def tell(self, candidates: list[Candidate]) -> None:
        """Every arm hears everything; those that were asked are credited."""
        for arm in self.arms.values():
            arm.tell(candidates)
        for credit in self._credits.values():
            credit.gain *= self.settings.memory
            credit.n_tokens *= self.settings.memory
        for name, candidate in zip(self._asked, candidates, strict=False):
            self._credits[name].gain += candidate.gain or 0.0
            self._credits[name].n_tokens += candidate.n_tokens
        self._asked = []

    def current_shares(self) -> dict[str, float]:
        """Arm -> its share of the next round."""
        gain = sum(credit.gain for credit in self._credits.values())
        n_tokens = sum(credit.n_tokens for credit in self._credits.values())
        if gain <= 0 or n_tokens <= 0:
            return dict(self.shares)
        # An arm that was hardly asked yet counts as one that earns what all do.
        prior = PRIOR * n_tokens / len(self.arms)
        rates = {name: (c.gain + gain / n_tokens * prior) / (c.n_tokens + prior) for name, c in self._credits.items()}
        explore = self.settings.explore
        earned = {name: share * rates[name] for name, share in self.shares.items()}
        total = sum(earned.values())
        return {name: explore * self.shares[name] + (1 - explore) * earned[name] / total for name in self.arms}

    def _deal(self, n: int, willing: list[str]) -> dict[str, int]:
        """Slots in whole quanta, in proportion to the shares; fractions are carried to the next rounds."""
        shares = self.current_shares()
        total = sum(shares[name] for name in willing)
        dealt: dict[str, int] = {}
        for start in range(0, n, self.settings.quantum):
            size = min(self.settings.quantum, n - start)
            for name in willing:
                self._owed[name] += size * shares[name] / total
            chosen = max(willing, key=lambda name: self._owed[name])
            self._owed[chosen] -= size
            dealt[chosen] = dealt.get(chosen, 0) + size
        return dealt
