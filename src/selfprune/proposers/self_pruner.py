"""Self-Pruner: a language model, by default the one that is being pruned, proposes allocations (arXiv 2502.14413).

Two differences from the paper, both for small language models: a reply gives few numbers (a percent per kind and per block, or a
few moves) instead of one rate per layer, and the budget is met by `project` instead of being asked for in the prompt.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import Any

from selfprune.allocation import Allocation
from selfprune.candidate import Candidate, Proposal, best
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace
from selfprune.proposers.coordinates import UnitView
from selfprune.proposers.replies import (
    MAX_MOVE_PERCENT,
    MAX_MOVES,
    ReplyError,
    coordinates_schema,
    moves_schema,
    parse_coordinates,
    parse_moves,
)

N_EXTREME_UNITS = 4
N_KEPT_CHARACTERS = 200


@dataclass
class SelfPruner(ProposerConfig):
    """How Self-Pruner asks.

    Attributes:
        n_replies_per_call: replies sampled from one prompt.
        n_shown: best candidates that the prompt shows.
        n_population_calls: calls that ask for whole allocations before calls ask for edits of the incumbent.
    """

    n_replies_per_call: int = 4
    n_shown: int = 3
    n_population_calls: int = 2

    def __post_init__(self) -> None:
        for name in ("n_replies_per_call", "n_shown", "n_population_calls"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} of the self_pruner proposer must be at least 1, got {getattr(self, name)}; the default serves"
                )

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A proposer that has asked nothing yet."""
        return SelfPrunerProposer(space, language_model, seed, self)


@dataclass(frozen=True)
class _Request:
    """A prompt, and how its replies are read into sparsities."""

    operator: str
    prompt: str
    schema: dict[str, Any]
    shown: list[Candidate]
    read: Callable[[str], dict[str, float]]


@dataclass
class SelfPrunerProposer:
    """Asks a language model for whole allocations at first (`population`), later for moves from the incumbent (`edits`).

    Attributes:
        space: units, levels and sensitivities.
        language_model: who is asked.
        seed: fixes the seeds of the calls.
        config: how it is asked.
        n_proposed: replies so far.
        n_valid: replies that gave an allocation which nobody had proposed before.

    Example:
        >>> proposer = SelfPrunerProposer(space, language_model, seed=0)
        >>> proposals = proposer.ask(4)
        >>> proposer.tell(candidates)
    """

    space: SearchSpace
    language_model: LanguageModel
    seed: int
    config: SelfPruner = field(default_factory=SelfPruner)
    name: str = field(default="self_pruner", init=False)
    n_proposed: int = field(default=0, init=False)
    n_valid: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._view = UnitView(self.space)
        self._n_calls = 0
        self._best: list[Candidate] = []
        self._has_own = False
        self._known: dict[tuple[int, ...], str] = {}

    def ask(self, n: int) -> list[Proposal]:
        """`n` proposals; a reply that no new allocation came of is one, with its failure.

        Raises:
            LanguageModelError: when the language model cannot answer.
        """
        proposals: list[Proposal] = []
        while len(proposals) < n:
            request = (
                self._edits()
                if self._has_own and self._best and self._n_calls >= self.config.n_population_calls
                else self._population()
            )
            seed = random.Random(f"{self.seed}/{self._n_calls}").getrandbits(31)
            n_replies = min(self.config.n_replies_per_call, n - len(proposals))
            replies = self.language_model.complete(request.prompt, request.schema, n_replies, seed)
            self._n_calls += 1
            proposals += [self._propose(reply.text, request) for reply in replies[:n_replies]]
        return proposals

    def tell(self, candidates: list[Candidate]) -> None:
        """Remembers the best that meet the budget, whoever proposed them."""
        # Yardsticks such as the dense model score well by missing the budget; they are no example to follow.
        on_budget = [c for c in candidates if c.proposal.allocation is not None and self.space.meets_budget(c.allocation)]
        self._best = best(self._best + on_budget, self.config.n_shown)
        self._has_own = self._has_own or any(c.proposal.proposer == self.name for c in candidates)
        for candidate in on_budget:
            self._known[self._key(candidate.allocation)] = f"candidate {candidate.id}"

    def _key(self, allocation: Allocation) -> tuple[int, ...]:
        return tuple(allocation[unit.name] for unit in self.space.grid.units)

    def _propose(self, text: str, request: _Request) -> Proposal:
        """The proposal that a reply makes, or its failure to make one."""
        self.n_proposed += 1
        parents = tuple(candidate.id for candidate in request.shown)
        try:
            allocation = self.space.project(request.read(text))
            if self._key(allocation) in self._known:
                raise ReplyError(f"duplicate of {self._known[self._key(allocation)]}")
        except ReplyError as error:
            return Proposal(None, self.name, request.operator, parents, failure=f"{error}: {text[:N_KEPT_CHARACTERS]}")
        self.n_valid += 1
        self._known[self._key(allocation)] = "an earlier proposal"
        return Proposal(allocation, self.name, request.operator, parents)

    def _population(self) -> _Request:
        view, target = self._view, 100 * self.space.target_sparsity
        lines = [f"score {c.score:.4g}: {view.coordinates(c.allocation)}" for c in reversed(self._best)]
        prompt = _fill(
            "population",
            n_blocks=len(view.blocks),
            last_block=len(view.blocks) - 1,
            target=round(target),
            kinds="\n".join(view.kind_rows()),
            blocks=view.block_sensitivities(),
            # Without an example, the uniform allocation at least shows the form.
            examples="\n".join(lines) or f"form: {view.coordinates(None)}",
        )
        schema = coordinates_schema([view.short[kind] for kind in view.kinds], len(view.blocks))

        def read(text: str) -> dict[str, float]:
            return view.expand(parse_coordinates(text, view.kinds, len(view.blocks), target))

        return _Request("population", prompt, schema, self._best, read)

    def _edits(self) -> _Request:
        view, incumbent = self._view, self._best[0]
        ranked = view.by_sensitivity(incumbent.allocation)
        sensitive, insensitive = ranked[:N_EXTREME_UNITS], ranked[: -N_EXTREME_UNITS - 1 : -1]
        prompt = _fill(
            "edits",
            n_blocks=len(view.blocks),
            target=round(100 * self.space.target_sparsity),
            score=f"{incumbent.score:.4g}",
            incumbent=view.coordinates(incumbent.allocation),
            sensitive="\n".join(view.unit_row(unit, incumbent.allocation) for unit in sensitive),
            insensitive="\n".join(view.unit_row(unit, incumbent.allocation) for unit in insensitive),
            max_moves=MAX_MOVES,
            max_percent=MAX_MOVE_PERCENT,
            example=f"form: {view.move_form(sensitive[0], insensitive[0])}",
        )
        schema = moves_schema([view.short[kind] for kind in view.kinds], len(view.blocks))

        def read(text: str) -> dict[str, float]:
            return view.apply(parse_moves(text, view.kinds, len(view.blocks)), incumbent.allocation)

        return _Request("edits", prompt, schema, [incumbent], read)


def _fill(prompt_name: str, **values: object) -> str:
    """The prompt file of this name, filled, without the line end that files have."""
    text = files(__package__).joinpath("prompts", f"{prompt_name}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(values).rstrip("\n")
