"""Self-Pruner: a language model, by default the one that is being pruned, proposes allocations (arXiv 2502.14413).

At first it writes whole allocations in few coefficients, later it edits the incumbent, or chooses among enumerated moves. It is
shown the values that gradients give the units. `operators.py` has the prompts.

Limits: differs from the paper, which asks for one rate per layer and for the budget in the prompt; `self_pruner_paper` does
that. A choice by log-probabilities ranks words that the model may not understand.
"""

import random
from dataclasses import dataclass, field, replace

from selfprune.allocations.candidate import Candidate, Proposal, best, past_incumbents
from selfprune.allocations.unit import Allocation
from selfprune.errors import ConfigError, did_you_mean
from selfprune.language_models.base import LanguageModel, Reply
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace
from selfprune.proposers.prompted import moves
from selfprune.proposers.prompted.operators import OPERATORS, QUESTION, PromptContext, Request
from selfprune.proposers.prompted.replies import ReplyError
from selfprune.proposers.prompted.unit_view import UnitView
from selfprune.proposers.unit_values import UnitValues

N_REMEMBERED = 1
"""Accepted moves that a prompt tells of, and as many rejected ones."""


@dataclass
class SelfPruner(ProposerConfig):
    """How Self-Pruner asks.

    Attributes:
        operators: what it asks for in turn once it has begun: `edits`, `choice`, `coefficients`.
        n_coefficient_calls: calls at the beginning that ask for whole allocations.
        n_replies_per_call: replies to one prompt.
        n_shown: best candidates that a prompt shows.
        n_rows: rows of each table of units.
        n_options: moves that are enumerated for a choice.
        n_windows: windows of each of the two gradients at every new incumbent; 0 to show the sensitivities, if measured.
        bracket: change of sparsity over which the gradients are taken.
    """

    operators: list[str] = field(default_factory=lambda: ["edits", "choice"])
    n_coefficient_calls: int = 1
    n_replies_per_call: int = 4
    n_shown: int = 3
    n_rows: int = 6
    n_options: int = 8
    n_windows: int = 4
    bracket: float = 0.05

    def __post_init__(self) -> None:
        for name in ("n_replies_per_call", "n_shown", "n_rows", "n_options", "n_coefficient_calls", "n_windows"):
            least = int(name not in ("n_coefficient_calls", "n_windows"))
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} of the self_pruner proposer must be at least {least}, got {getattr(self, name)}; the default serves"
                )
        if not 0 <= self.bracket <= 1:
            raise ConfigError(f"bracket of the self_pruner proposer must lie in [0, 1], got {self.bracket}")
        for name in self.operators or ["none"]:
            if name not in OPERATORS:
                raise ConfigError(
                    f"operators of the self_pruner proposer must be some of {', '.join(OPERATORS)}, got {name!r}; "
                    f"nearest: {did_you_mean(name, OPERATORS)}"
                )

    @property
    def asks_language_model(self) -> bool:
        """Always."""
        return True

    @property
    def first_looks(self) -> tuple[int, int]:
        """One, where it begins."""
        return (1, self.n_windows) if self.n_windows else (0, 0)

    @property
    def looks_left_out(self) -> dict[str, tuple[int, int]]:
        """None remain without gradients."""
        return {"n_windows=0": (0, 0)} if self.n_windows else {}

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A proposer that has asked nothing yet."""
        return SelfPrunerProposer(space, language_model, seed, self)


@dataclass
class SelfPrunerProposer:
    """Asks a language model for steps from the best candidate it was told of, whoever proposed it.

    Attributes:
        space: units, levels, gradients and sensitivities.
        language_model: who is asked.
        seed: fixes the seeds of the calls.
        config: how it is asked.

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

    def __post_init__(self) -> None:
        self._view = UnitView(self.space)
        self._n_calls = 0
        self._best: list[Candidate] = []
        self._here = self.space.uniform()
        self._champions: list[Candidate] = []
        self._worth = UnitValues.of_sensitivities(self.space)
        self._valued: Allocation | None = None
        self._next_window = 0
        self._n_unpaid_tokens = 0
        self._known: dict[tuple[int, ...], str] = {}
        self._phrases: dict[tuple[int, ...], str] = {}
        self._fates: dict[str, list[str]] = {"Accepted": [], "Rejected": []}

    def ask(self, n: int) -> list[Proposal]:
        """`n` proposals; a reply that no new allocation came of is one, with its failure.

        Raises:
            LanguageModelError: when the language model cannot serve at all.
        """
        proposals: list[Proposal] = []
        while len(proposals) < n:
            self._look()
            turn = self._n_calls - self.config.n_coefficient_calls
            operator = "coefficients" if turn < 0 else self.config.operators[turn % len(self.config.operators)]
            seed = random.Random(f"{self.seed}/{self._n_calls}").getrandbits(31)
            request = OPERATORS[operator](self._context(seed))
            replies = self._replies(request, min(self.config.n_replies_per_call, n - len(proposals)), seed)
            self._n_calls += 1
            proposals += [self._propose(reply, request) for reply in replies]
        if proposals:
            proposals[0] = replace(proposals[0], proposal_tokens=self._n_unpaid_tokens)
            self._n_unpaid_tokens = 0
        return proposals

    def tell(self, candidates: list[Candidate]) -> None:
        """Moves to the incumbent, and remembers the best that meet the budget, whoever proposed them."""
        # Yardsticks such as the dense model score well by missing the budget; they are no example to follow.
        on_budget = [c for c in candidates if c.proposal.allocation is not None and self.space.target.is_met(c.allocation)]
        self._best = best(self._best + on_budget, self.config.n_shown)
        for candidate in on_budget:
            genome = self.space.grid.genome(candidate.allocation)
            self._known[genome] = f"candidate {candidate.id}"
            if phrase := self._phrases.pop(genome, ""):
                fate = "Rejected" if candidate.gain is None else "Accepted"
                self._fates[fate] = [*self._fates[fate], phrase][-N_REMEMBERED:]
        self._champions = past_incumbents(self._champions, on_budget)
        self._here = self.space.stand(self._champions)

    def _look(self) -> None:
        """Takes the gradients at a new incumbent, from windows that follow the last ones, unless another arm has taken them.

        Where the tokens do not pay for them, the sensitivities are shown, if measured.
        """
        oracle, n_windows = self.space.move_values, self.config.n_windows
        if oracle is None or not n_windows or self._valued == self._here:
            return
        values = oracle.known(self._here)
        if values is None and not oracle.affords(n_windows):
            self._worth, self._valued = UnitValues.of_sensitivities(self.space), None
            return
        if values is None:
            values = oracle(self._here, self.config.bracket, self._next_window, n_windows)
            self._n_unpaid_tokens += values.n_tokens
            self._next_window = (self._next_window + n_windows) % oracle.n_windows
        self._worth, self._valued = UnitValues.of_moves(values, self.space.grid), dict(self._here)

    def _context(self, seed: int) -> PromptContext:
        incumbent = self._champions[-1] if self._champions else None
        return PromptContext(
            self._view,
            self._here,
            incumbent.id if incumbent else None,
            incumbent.score if incumbent else None,
            self._best,
            self._worth,
            [f"{fate}: {phrase}" for fate, phrases in self._fates.items() for phrase in phrases],
            self.config.n_rows,
            self.config.n_options,
            seed,
        )

    def _replies(self, request: Request, n: int, seed: int) -> list[Reply]:
        """`n` replies, or as many as there are options; at least one, which may have failed."""
        replies = self._chosen(request)[:n] if request.options else []
        replies = replies or self.language_model.complete(request.prompt, request.schema, n, seed)[:n]
        return replies or [Reply("", None, 0, 0, failure="the language model gave no reply")]

    def _chosen(self, request: Request) -> list[Reply]:
        """The options that lead to new allocations, the most probable first; none where the model tells no probabilities.

        How much more probable the tables make an option counts, because some words are likelier than others anyway.
        """
        replies = self.language_model.score(request.prompt, request.options)
        if any(reply.failure or reply.logprob is None for reply in replies):
            return []
        before = self.language_model.score(f"{QUESTION}\nbetter:\n", request.options)
        rises = [(reply.logprob or 0.0) - (blank.logprob or 0.0) for reply, blank in zip(replies, before, strict=True)]
        ranked = [replies[i] for i in sorted(range(len(replies)), key=lambda i: -rises[i])]
        is_known = [self.space.grid.genome(self.space.project(request.read(r.text, []))) in self._known for r in ranked]
        return [reply for reply, known in zip(ranked, is_known, strict=True) if not known] or ranked

    def _propose(self, reply: Reply, request: Request) -> Proposal:
        """The proposal that a reply makes, or its failure to make one."""
        proposal = Proposal(None, self.name, request.operator, request.parents, reply=reply.source)
        if reply.failure:
            return replace(proposal, failure=reply.failure)
        repairs: list[str] = []
        try:
            allocation = self.space.project(request.read(reply.text, repairs))
            genome = self.space.grid.genome(allocation)
            if genome in self._known:
                raise ReplyError(f"duplicate of {self._known[genome]}")
        except ReplyError as error:
            return replace(proposal, failure=error.quoting(reply.text))
        self._known[genome] = "an earlier proposal"
        if request.moves_of:
            self._phrases[genome] = moves.phrase(self._view, request.moves_of(reply.text, []))
        return replace(proposal, allocation=allocation, repair="; ".join(dict.fromkeys(repairs)))
