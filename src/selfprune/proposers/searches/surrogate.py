"""Screening by an online surrogate: of many evolutionary children, those that a Bayesian linear model expects to be best.

Surrogates that rank the offspring of an evolution before it pays for them are surveyed by Jin (Swarm and Evolutionary
Computation 1, 2011). Here log score = b_r + w·φ(x) + ε, where r is the number of windows, x the allocation less the incumbent,
φ(0) = 0 and w ~ N(0, σ²/λ). The intercepts b_r, with flat priors, take up what tells rungs apart, so that only scores of as many
windows are compared; they vanish when both sides are centred per rung. With the centred features φ = U S Vᵀ and scores y,

    E w = V diag(s_i / (s_i² + λ)) Uᵀ y,    Cov w = σ² (V diag(1 / (s_i² + λ)) Vᵀ + (1 − V Vᵀ) / λ),

and λ and σ² have the greatest evidence. Children with the lowest E w·φ − optimism · sd(w·φ) are proposed.

Limits: there are no terms between units, so that the model holds near the incumbent only. Where rungs draw fresh windows, what
tells windows apart counts as noise. A survivor keeps the score of its last rung alone, so that lower rungs teach by their losers.
"""

import math
import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from selfprune.allocations.candidate import Candidate, Proposal, best
from selfprune.allocations.level_grid import LevelGrid
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace
from selfprune.proposers.searches.evolutionary import Evolutionary, EvolutionaryProposer

Array = NDArray[np.float64]

WORST = 1.0
"""Log ratio to the best of a rung above which scores count alike: how badly a model is broken says little about small steps."""
SHIFT = 0.1
"""Change of sparsity at which linear and quadratic terms matter alike, before anything is known."""
RIDGES = tuple(float(ridge) for ridge in np.logspace(-4, 4, 25))
"""Values of λ that are tried, in mean squared singular values."""


@dataclass
class Surrogate(ProposerConfig):
    """Screened children.

    Attributes:
        n_children: children that are screened for every round.
        optimism: standard deviations by which a child may do better than expected.
        n_first: scores that must be known before children are screened.
        memory: newest scores that are learnt from.
        evolution: how children are made.
    """

    n_children: int = 256
    optimism: float = 0.5
    n_first: int = 8
    memory: int = 400
    evolution: Evolutionary = field(default_factory=Evolutionary)

    def __post_init__(self) -> None:
        if self.n_children < 1 or self.n_first < 2 or self.memory < self.n_first or not 0 <= self.optimism < math.inf:
            raise ConfigError(
                "the surrogate needs n_children >= 1, n_first >= 2, memory >= n_first and optimism >= 0, "
                f"got {self.n_children}, {self.n_first}, {self.memory} and {self.optimism}"
            )

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A model that knows nothing, and a population that begins empty."""
        return SurrogateProposer(space, self, EvolutionaryProposer(space, self.evolution, random.Random(seed)))


@dataclass
class SurrogateProposer:
    """Learns from all that is told, whoever proposed it."""

    space: SearchSpace
    settings: Surrogate
    breeder: EvolutionaryProposer
    name: str = field(default="surrogate", init=False)

    def __post_init__(self) -> None:
        units = self.space.grid.units
        self._n_weights_U = np.array([unit.n_weights for unit in units], dtype=float)
        self._n_items_U = np.array([unit.n_items for unit in units], dtype=float)
        # levels are ranges or tuples, of which NumPy would make arrays in every step of the bisection
        self._savings = [
            (levels.n_items, np.array(levels.items, dtype=float), np.array(levels.saved, dtype=float))
            for levels in self.space.target.levels.values()
        ]
        self._groups_UG = _groups(self.space.grid)
        self._seen: set[tuple[int, ...]] = set()
        self._incumbent: Candidate | None = None
        self._scores: dict[tuple[tuple[int, ...], int], float] = {}

    def ask(self, n: int) -> list[Proposal]:
        """`n` children, the most promising first; fewer where there are no new ones."""
        drafts = [self.breeder.offspring() for _ in range(max(n, self.settings.n_children))] if n else []
        wished_CU = np.array([[*draft.sparsities.values()] for draft in drafts])
        proposals: list[Proposal] = []
        for i in self._ranked(wished_CU) if n else []:
            draft = drafts[i]
            child = self.space.project(draft.sparsities)
            genome = self.space.grid.genome(child)
            if genome not in self._seen:
                self._seen.add(genome)
                proposals.append(Proposal(child, self.name, draft.operator, draft.parents))
            if len(proposals) == n:
                break
        return proposals

    def tell(self, candidates: list[Candidate]) -> None:
        """Keeps finite scores above 0, FAILED candidates only as seen."""
        self.breeder.tell(candidates)
        for candidate in candidates:
            if candidate.proposal.allocation is None:
                continue
            genome = self.space.grid.genome(candidate.allocation)
            self._seen.add(genome)
            if candidate.score is not None and math.isfinite(candidate.score) and candidate.score > 0:
                self._scores.pop((genome, candidate.n_windows), None)
                self._scores[genome, candidate.n_windows] = candidate.score
        for oldest in list(self._scores)[: -self.settings.memory]:
            del self._scores[oldest]
        self._incumbent = next(iter(best([*([self._incumbent] if self._incumbent else []), *candidates])), None)

    def _ranked(self, wished_CU: Array) -> list[int]:
        """The children in the order of promise; as they were drawn, while nothing is known."""
        as_drawn = list(range(len(wished_CU)))
        if self._incumbent is None or len(self._scores) < self.settings.n_first:
            return as_drawn
        centre_U = np.array(self.space.grid.genome(self._incumbent.allocation)) / self._n_items_U
        known_NU = np.array([genome for genome, _ in self._scores]) / self._n_items_U
        rungs = np.array([n_windows for _, n_windows in self._scores])
        model = LinearModel.fit(self._features(known_NU - centre_U), np.log([*self._scores.values()]), rungs)
        if model is None:
            return as_drawn
        mean_C, deviation_C = model.predict(self._features(self._on_budget(wished_CU) - centre_U))
        return [int(i) for i in np.argsort(mean_C - self.settings.optimism * deviation_C, kind="stable")]

    def _on_budget(self, wished_CU: Array) -> Array:
        """Shifts the sparsities of every child by a constant until it saves the target, as `project` does, without rounding."""
        highest_U = np.array([self.space.grid.highest_sparsity(unit) for unit in self.space.grid.units])
        low_C = np.full(len(wished_CU), -1.0 - np.abs(wished_CU).max())
        high_C = -low_C
        for _ in range(25):
            middle_C = (low_C + high_C) / 2
            is_short_C = self._saved(wished_CU + middle_C[:, None]) < self.space.target.n_saved
            low_C, high_C = np.where(is_short_C, middle_C, low_C), np.where(is_short_C, high_C, middle_C)
        shifted_CU: Array = np.clip(wished_CU + high_C[:, None], 0, highest_U)
        return shifted_CU

    def _saved(self, sparsities_CU: Array) -> Array:
        """What children save, in straight lines between the levels."""
        saved_C = np.zeros(len(sparsities_CU))
        for (n_items, items_L, saved_L), sparsities_C in zip(self._savings, sparsities_CU.T, strict=True):
            saved_C += np.interp(sparsities_C * n_items, items_L, saved_L)
        return saved_C

    def _features(self, shift_NU: Array) -> Array:
        """Weights that go, of units, blocks and kinds; and half their products with the shifts, of blocks, kinds and all."""
        moved_NU = shift_NU * self._n_weights_U / self._n_weights_U.mean()
        bent_NU = moved_NU * shift_NU / (2 * SHIFT)
        parts = [moved_NU, moved_NU @ self._groups_UG, bent_NU @ self._groups_UG, bent_NU.sum(axis=1, keepdims=True)]
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class LinearModel:
    """The posterior of the weights w.

    Attributes:
        weights_P: their mean.
        basis_KP: directions of which something is known.
        variances_K: of the weights along these.
        prior_variance: of the weights along all others.
    """

    weights_P: Array
    basis_KP: Array
    variances_K: Array
    prior_variance: float

    @classmethod
    def fit(cls, features_NP: Array, logs_N: Array, rungs_N: NDArray[np.int64]) -> "LinearModel | None":
        """The model of the greatest evidence; None where the scores tell nothing.

        Args:
            features_NP: of the candidates.
            logs_N: of their scores.
            rungs_N: candidates are compared with those of the same number alone.
        """
        features_NP, logs_N = features_NP.copy(), logs_N.copy()
        rungs = np.unique(rungs_N)
        for rung in rungs:
            same = rungs_N == rung
            logs_N[same] = np.minimum(logs_N[same] - logs_N[same].min(), WORST)
            logs_N[same] -= logs_N[same].mean()
            features_NP[same] -= features_NP[same].mean(axis=0)
        n_free = len(logs_N) - len(rungs)
        # S² and V of the singular value decomposition, several times as fast.
        squares_K, basis_PK = np.linalg.eigh(features_NP.T @ features_NP)
        is_known_K = squares_K > 1e-12 * max(squares_K[-1], 1e-12)
        squares_K, basis_KP = squares_K[is_known_K], basis_PK.T[is_known_K]
        if n_free < 2 or not is_known_K.any() or float(logs_N @ logs_N) < 1e-20:
            return None
        along_K = basis_KP @ (features_NP.T @ logs_N) / np.sqrt(squares_K)
        beside = max(0.0, float(logs_N @ logs_N - along_K @ along_K))

        def noise(ridge: float) -> float:
            return (float((along_K**2 / (1 + squares_K / ridge)).sum()) + beside) / n_free

        def evidence(ridge: float) -> float:
            return -(n_free * math.log(max(noise(ridge), 1e-300)) + float(np.log1p(squares_K / ridge).sum())) / 2

        ridge = max((factor * float(squares_K.mean()) for factor in RIDGES), key=evidence)
        weights_P = (along_K * np.sqrt(squares_K) / (squares_K + ridge)) @ basis_KP
        return cls(weights_P, basis_KP, noise(ridge) / (squares_K + ridge), noise(ridge) / ridge)

    def predict(self, features_NP: Array) -> tuple[Array, Array]:
        """Expected log ratio of the scores to that of the incumbent, and its standard deviation."""
        along_NK = features_NP @ self.basis_KP.T
        beside_N = np.maximum((features_NP**2).sum(axis=1) - (along_NK**2).sum(axis=1), 0.0)
        return features_NP @ self.weights_P, np.sqrt(along_NK**2 @ self.variances_K + beside_N * self.prior_variance)


def _groups(grid: LevelGrid) -> Array:
    """1 where a unit (rows) belongs to a block or a kind (columns)."""
    blocks, kinds = (list(dict.fromkeys(group)) for group in zip(*((u.block, u.kind) for u in grid.units), strict=True))
    return np.array([[*(u.block == b for b in blocks), *(u.kind == k for k in kinds)] for u in grid.units], dtype=float)
