"""Bracketed swap gradients: zero-sum moves of the incumbent towards equal marginal costs.

Every unit u has a worth a_u of restoring a level and a cost b_u of removing one, each from a backward pass at a model to which
that move is a restoration (`MoveOracle`). Their mean is the marginal cost m_u of its weights; it grows with the sparsity s like
exp(k·s), where k is the median of log(b_u / a_u) over the distance between the two. At the optimum all marginal costs are equal,
which is reached at

    s_u + clip(log(λ / m_u) / k, ±radius),

with λ such that the budget is met. Proposals differ in the radius; a success keeps the best one's, a failure halves it and adds
windows to the values.

Limits: single costs are noisy, and pruning one unit changes the costs of others; hence the radii and the race.
"""

import math
import statistics
from dataclasses import dataclass, field, replace

from selfprune.allocations.candidate import Candidate, Proposal, past_incumbents
from selfprune.allocations.unit import Allocation
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace
from selfprune.proposers.move_values import MoveValues

MAX_LOOKS = 4
"""Looks at one place; more hardly change the values."""
MAX_HALVINGS = 6
"""Radii that are tried before there is nothing new to propose."""
FLOOR = 0.1
"""Least marginal cost, as a share of the median: lower ones, and those below zero, are mostly noise."""
GROWTH = (1.0, 30.0)
"""Bounds on k; the first look may be too noisy to tell."""


@dataclass
class Gradient(ProposerConfig):
    """Steps in a trust region.

    Attributes:
        n_windows: windows of each of the two backward passes.
        radius: first bound on the change of a unit's sparsity.
        factors: multiples of the radius that are proposed together.
        bracket: change of sparsity over which values are taken, as a share of the radius.
        memory: share of the values that comes of earlier incumbents, moved along their curves.
    """

    n_windows: int = 8
    radius: float = 0.05
    factors: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    bracket: float = 0.5
    memory: float = 0.5

    def __post_init__(self) -> None:
        if self.n_windows < 1 or not self.factors or any(factor <= 0 for factor in self.factors):
            raise ConfigError(
                f"the gradient proposer needs n_windows >= 1 and factors above 0, got {self.n_windows} and {self.factors}"
            )
        for name, low_allowed in (("radius", False), ("bracket", True), ("memory", True)):
            value = getattr(self, name)
            if not (0 <= value <= 1 if low_allowed else 0 < value <= 1) or (name == "memory" and value == 1):
                raise ConfigError(f"{name} of the gradient proposer must lie between 0 and 1, got {value}")

    @property
    def first_looks(self) -> tuple[int, int]:
        """One, where it begins."""
        return 1, self.n_windows

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """Begins at the uniform allocation, unless it is told of a better one.

        Raises:
            ConfigError: when there are no gradients to be had.
        """
        if space.move_values is None:
            raise ConfigError("the gradient proposer needs gradients of the score, which this search does not offer")
        return GradientProposer(space, self)


@dataclass
class GradientProposer:
    """Proposes steps from the best candidate it was told of, whoever proposed it."""

    space: SearchSpace
    settings: Gradient
    name: str = field(default="gradient", init=False)

    def __post_init__(self) -> None:
        self._champions: list[Candidate] = []
        self._here = self.space.stand(self._champions)
        self._costs: dict[str, float] = {}
        self._growth = 0.0
        self._valued: Allocation | None = None
        self._n_looks = 0
        self._n_unpaid_tokens = 0
        self._radius = self.settings.radius
        self._next_window = 0
        self._seen: set[tuple[int, ...]] = set()
        self._asked: dict[tuple[int, ...], float] = {}

    def ask(self, n: int) -> list[Proposal]:
        """At most one step per factor, the middle ones first.

        When every step was proposed before, at smaller radii too, there is none, or a failure that says what the gradients cost.
        There is none either where the tokens do not pay for gradients at the incumbent.
        """
        if self._valued != self._here or self._n_looks < MAX_LOOKS:
            if self._affords_look():
                self._look()
            elif self._valued != self._here:
                return []
        factors = sorted(self.settings.factors, key=lambda factor: abs(math.log(factor)))[:n]
        for _ in range(MAX_HALVINGS):
            proposals = [step for factor in factors if (step := self._new_step(min(1.0, factor * self._radius))) is not None]
            if proposals:
                break
            self._radius /= 2
        if n and not proposals and self._n_unpaid_tokens:
            proposals = [Proposal(None, self.name, parents=self._parents(), failure="every step was proposed before")]
        if proposals:
            proposals[0] = replace(proposals[0], proposal_tokens=self._n_unpaid_tokens)
            self._n_unpaid_tokens = 0
        return proposals

    def tell(self, candidates: list[Candidate]) -> None:
        """Moves to the incumbent, and learns which radius served."""
        self._seen.update(self.space.grid.genome(c.allocation) for c in candidates if c.proposal.allocation is not None)
        asked = [c for c in candidates if c.proposal.proposer == self.name and not c.is_champion_again]
        self._champions = past_incumbents(self._champions, candidates)
        self._here = self.space.stand(self._champions)
        if any(c.gain is not None for c in asked):
            self._radius = self._asked.get(self.space.grid.genome(self._here), self._radius)
        elif asked:
            self._radius /= 2

    def _parents(self) -> tuple[int, ...]:
        return tuple(champion.id for champion in self._champions[-1:])

    def _new_step(self, radius: float) -> Proposal | None:
        child = self._step(radius)
        genome = self.space.grid.genome(child)
        if genome in self._seen:
            return None
        self._seen.add(genome)
        self._asked[genome] = radius
        return Proposal(child, self.name, f"radius {radius:.3g}", self._parents())

    def _affords_look(self) -> bool:
        assert self.space.move_values is not None
        return self.space.move_values.affords(self.settings.n_windows)

    def _look(self) -> None:
        """Takes the values here, from windows that follow the last ones."""
        oracle = self.space.move_values
        assert oracle is not None
        values = oracle(self._here, self.settings.bracket * self._radius, self._next_window, self.settings.n_windows)
        self._n_unpaid_tokens += values.n_tokens
        self._next_window = (self._next_window + self.settings.n_windows) % oracle.n_windows
        fresh, growth = self._fit(values)
        is_same_place = self._valued == self._here
        self._n_looks = self._n_looks + 1 if is_same_place else 1
        kept = 1 - 1 / self._n_looks if is_same_place else self.settings.memory
        if self._valued is not None:
            before, now = (self.space.grid.sparsities(allocation) for allocation in (self._valued, self._here))
            for name, old in self._costs.items():
                fresh[name] = kept * old * math.exp(self._growth * (now[name] - before[name])) + (1 - kept) * fresh[name]
            growth = kept * self._growth + (1 - kept) * growth
        self._costs, self._growth, self._valued = fresh, growth, dict(self._here)

    def _fit(self, values: MoveValues) -> tuple[dict[str, float], float]:
        """Marginal costs per weight, and by what factor they grow per unit of sparsity, as a logarithm."""
        grid = self.space.grid
        below, above = grid.bracket(self._here, self.settings.bracket * self._radius)
        costs: dict[str, float] = {}
        growths = []
        for unit in grid.units:
            # a value that is no number counts as unknown
            sides = {
                side: value
                for side, worth in (("below", values.restoring), ("above", values.removing))
                if (value := worth.get(unit.name)) is not None and math.isfinite(value)
            }
            if sides:
                costs[unit.name] = statistics.fmean(sides.values()) / grid.step_weights(unit)
            distance = (above[unit.name] - below[unit.name]) / 2 / unit.n_items
            if len(sides) == 2 and min(sides.values()) > 0:
                growths.append(math.log(sides["above"] / sides["below"]) / distance)
        typical = statistics.median(costs.values()) if costs else 0.0
        growth = min(max(statistics.median(growths), GROWTH[0]), GROWTH[1]) if growths else sum(GROWTH) / 2
        return {unit.name: costs.get(unit.name, typical) for unit in grid.units}, growth

    def _step(self, radius: float) -> Allocation:
        """Equal marginal costs on the budget, as far as the radius allows."""
        grid = self.space.grid
        sparsities = grid.sparsities(self._here)
        typical = statistics.median(map(abs, self._costs.values())) or 1.0
        logs = {name: math.log(max(cost, FLOOR * typical)) / self._growth for name, cost in self._costs.items()}

        def moves(price: float) -> dict[str, float]:
            found = {}
            for unit in grid.units:
                low = max(-radius, -sparsities[unit.name])
                high = min(radius, grid.highest_sparsity(unit) - sparsities[unit.name])
                found[unit.name] = min(max(price - logs[unit.name], low), high)
            return found

        low, high = min(logs.values()) - radius, max(logs.values()) + radius
        for _ in range(60):
            middle = (low + high) / 2
            total = sum(move * unit.n_weights for unit, move in zip(grid.units, moves(middle).values(), strict=True))
            low, high = (middle, high) if total < 0 else (low, middle)
        chosen = moves(high)
        return self.space.project({name: sparsities[name] + chosen[name] for name in sparsities})
