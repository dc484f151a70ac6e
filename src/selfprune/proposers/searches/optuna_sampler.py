"""Optuna's samplers over few coefficients: TPE (Bergstra et al., 2011) or CMA-ES (Hansen, arXiv 1604.00772).

The coefficients are those of `coefficients.py` with a spread of 100%: an offset and a slope over depth per kind, and an offset of
the first and of the last block, 16 numbers for Llama; then `project` puts all on the budget.

Limits: what does not lie in these coordinates cannot be found, and what others propose is not learnt from. Scores are taken as
they are told, although a STOPPED candidate saw other windows than a COMPLETE one.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from selfprune.allocations.candidate import Candidate, Proposal
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace
from selfprune.proposers.coefficients import Coefficients
from selfprune.proposers.unit_places import UnitPlaces

if TYPE_CHECKING:
    from optuna import Study

MAX_DUPLICATES = 20
"""Draws in a row that give known allocations, after which nothing new is expected."""


class Algorithm(str, Enum):
    """TPE: the tree-structured Parzen estimator. CMA_ES: the evolution strategy with an adapted covariance matrix."""

    TPE = "TPE"
    CMA_ES = "CMA_ES"


@dataclass
class OptunaSampler(ProposerConfig):
    """Which sampler, and how far it looks.

    Attributes:
        algorithm: the sampler.
        max_offset: bound of every coefficient either way, as a sparsity.
    """

    algorithm: Algorithm = Algorithm.TPE
    max_offset: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.max_offset <= 1:
            raise ConfigError(f"max_offset of the optuna_sampler proposer must lie in (0, 1], got {self.max_offset}")

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A sampler that was told nothing yet; its trials live in memory alone."""
        return OptunaProposer(space, self, _make_study(Algorithm(self.algorithm), seed))


@dataclass
class OptunaProposer:
    """Asks the study for coefficients, and tells it the scores of the allocations that came of them."""

    space: SearchSpace
    settings: OptunaSampler
    study: "Study"
    name: str = field(default="optuna_sampler", init=False)

    def __post_init__(self) -> None:
        self._places = UnitPlaces(self.space)
        # Trial numbers by the allocation that came of them, as long as its fate is not known; later its score, None if FAILED.
        self._waiting: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self._known: dict[tuple[int, ...], float | None] = {}

    def ask(self, n: int) -> list[Proposal]:
        """`n` allocations that were neither proposed nor told before; fewer where the sampler finds no new ones."""
        from optuna.distributions import FloatDistribution

        bound = FloatDistribution(-self.settings.max_offset, self.settings.max_offset)
        proposals: list[Proposal] = []
        n_duplicates = 0
        while len(proposals) < n and n_duplicates < MAX_DUPLICATES:
            trial = self.study.ask(dict.fromkeys(self._coefficients(), bound))
            allocation = self.space.project(self._expand(trial.params))
            key = self.space.grid.genome(allocation)
            if key in self._known:
                self._finish(trial.number, self._known[key])
                n_duplicates += 1
                continue
            is_new = key not in self._waiting
            self._waiting[key].append(trial.number)
            if is_new:
                proposals.append(Proposal(allocation, self.name, self.settings.algorithm.lower()))
            n_duplicates = 0 if is_new else n_duplicates + 1
        return proposals

    def tell(self, candidates: list[Candidate]) -> None:
        """Finishes the trials whose allocations were scored, whoever proposed them; FAILED ones fail."""
        for candidate in candidates:
            if candidate.proposal.allocation is None:
                continue
            key = self.space.grid.genome(candidate.allocation)
            self._known[key] = candidate.score
            for number in self._waiting.pop(key, []):
                self._finish(number, candidate.score)

    def _finish(self, number: int, score: float | None) -> None:
        from optuna.trial import TrialState

        if score is None or not math.isfinite(score):
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, score)

    def _coefficients(self) -> list[str]:
        """Their names; a single block has no depth."""
        names = [f"offset.{kind}" for kind in self._places.kinds]
        if len(self._places.blocks) > 1:
            names += [f"slope.{kind}" for kind in self._places.kinds] + ["first", "last"]
        return names

    def _expand(self, coefficients: dict[str, Any]) -> dict[str, float]:
        """Unit name -> wished sparsity."""
        percents = {name: 100 * value for name, value in coefficients.items()}
        by_name = [{kind: percents.get(f"{name}.{kind}", 0.0) for kind in self._places.kinds} for name in ("offset", "slope")]
        edges = percents.get("first", 0.0), percents.get("last", 0.0)
        return Coefficients(by_name[0], by_name[1], *edges).expand(self._places)


def _make_study(algorithm: Algorithm, seed: int) -> "Study":
    # It takes half a second to import, which runs without it need not wait for.
    import optuna

    if algorithm is Algorithm.TPE:
        sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    else:
        sampler = optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(sampler=sampler)
    finally:
        optuna.logging.set_verbosity(verbosity)
