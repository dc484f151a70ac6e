"""Several proposers share the candidates of a search; each is told of all.

Limits: the shares are fixed; a bandit that moves them by credit belongs here.
"""

from dataclasses import dataclass, field
from typing import Any

from selfprune.candidate import Candidate, Proposal
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace


@dataclass
class Portfolio(ProposerConfig):
    """Arms and their shares.

    Attributes:
        arms: name -> the settings of a proposer.
        shares: name -> relative share of every round; 1 where not named.
    """

    arms: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(share < 0 for share in self.shares.values()):
            raise ConfigError(f"the shares of a portfolio must not be negative, got {self.shares}")

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """Every arm with a seed of its own.

        Raises:
            ConfigError: when there is no arm, or the shares do not belong to the arms.
        """
        if not self.arms:
            raise ConfigError("a portfolio needs at least one arm, got none; see conf/proposer/portfolio.yaml")
        unknown = [name for name in self.shares if name not in self.arms]
        if unknown or not any(self.shares.get(name, 1.0) > 0 for name in self.arms):
            raise ConfigError(
                f"the shares of a portfolio must name its arms and leave one of them above 0, got {self.shares}; "
                f"its arms are {', '.join(self.arms)}"
            )
        arms = {name: arm.build(space, seed * 1009 + i, language_model) for i, (name, arm) in enumerate(self.arms.items())}
        return PortfolioProposer(arms, {name: self.shares.get(name, 1.0) for name in arms})


@dataclass
class PortfolioProposer:
    """Deals every round out to its arms; what one arm leaves, the others take up."""

    arms: dict[str, Proposer]
    shares: dict[str, float]
    name: str = field(default="portfolio", init=False)

    def __post_init__(self) -> None:
        self._owed = dict.fromkeys(self.arms, 0.0)

    def ask(self, n: int) -> list[Proposal]:
        """At most `n`; an arm that answers with less than its share is not asked again in this round."""
        proposals: list[Proposal] = []
        willing = dict(self.shares)
        while len(proposals) < n and sum(willing.values()) > 0:
            for name, n_asked in self._deal(n - len(proposals), willing).items():
                said = self.arms[name].ask(n_asked) if n_asked else []
                proposals += said
                if len(said) < n_asked:
                    willing[name] = 0.0
        return proposals

    def tell(self, candidates: list[Candidate]) -> None:
        """Every arm hears everything."""
        for arm in self.arms.values():
            arm.tell(candidates)

    def _deal(self, n: int, willing: dict[str, float]) -> dict[str, int]:
        """Whole numbers in proportion to the shares; fractions are carried to the next rounds."""
        total = sum(willing.values())
        dealt = dict.fromkeys(willing, 0)
        for name, share in willing.items():
            self._owed[name] += n * share / total
        for _ in range(n):
            name = max((name for name in willing if willing[name] > 0), key=lambda name: self._owed[name])
            self._owed[name] -= 1
            dealt[name] += 1
        return dealt
