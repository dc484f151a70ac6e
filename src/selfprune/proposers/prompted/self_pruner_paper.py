"""Self-Pruner as published: evolution whose operators are a language model (Huang et al., 2025, arXiv 2502.14413).

    min perplexity(p)   subject to   (1/n) Σ p_i = β,   p_i the pruning rate of layer i

The language model makes a population of 30 by one prompt. An iteration selects parents by a second, makes 10 children of two
parents by a third and 10 of one parent by a fourth; the best 30 of all stay. After 20 iterations the best is the result.

`self_pruner` differs in what it asks for (few coefficients, then moves) and shows (sensitivities). This is its control.

Limits: what the paper leaves open is settled here, so its numbers need not repeat. The prompts are ours; they show neither
sensitivities nor the model's name, which a search space does not know. Which of the population the selection is shown (the best
`n_shown`), how many parents it chooses (4), how they are paired (in turn) and who survives (the best) are ours. So is the mean
rate: the prompt asks for it, and `project` meets it exactly, counted in weights, for every list. Scores are shown as the search
has them: nats per token for `evaluator=perplexity`, which rank as perplexity does. The paper searches on WikiText-2, asks GPT-4,
and prunes heads and channels by Wanda-sp; here the search split, `language_model` and `pruner` decide.
"""

import random
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from selfprune.allocations.candidate import Candidate, Proposal, best
from selfprune.allocations.unit import Allocation
from selfprune.errors import ConfigError
from selfprune.language_models.base import LanguageModel, Reply
from selfprune.proposers.base import Proposer, ProposerConfig, SearchSpace
from selfprune.proposers.prompted.layer_rates import Granularity, LayerRates, parents_schema, parse_parents
from selfprune.proposers.prompted.paper_prompts import PaperPrompts
from selfprune.proposers.prompted.replies import MAX_PERCENT, ReplyError

LEAST = {
    "population": 2, "n_crossovers": 0, "n_mutations": 0, "n_iterations": 0, "n_parents": 2, "n_shown": 2, "n_attempts": 1,
    "n_replies_per_call": 1, "resolution": 1,
}  # fmt: skip


@dataclass
class SelfPrunerPaper(ProposerConfig):
    """The published sizes, and what the paper leaves open.

    Attributes:
        population: allocations that the language model makes at the start, and most that survive an iteration.
        n_crossovers: children of two parents in an iteration.
        n_mutations: children of one parent in an iteration.
        n_iterations: after these, nothing more is proposed.
        n_parents: how many the language model selects in an iteration.
        n_shown: most allocations that a prompt shows.
        n_attempts: replies that are asked for until one gives a new allocation; the last failure counts.
        n_replies_per_call: replies that are sampled from one prompt for the population.
        granularity: whether a layer with a rate of its own is a block, as in the paper, or a unit.
        resolution: percent between adjacent rates.
    """

    population: int = 30
    n_crossovers: int = 10
    n_mutations: int = 10
    n_iterations: int = 20
    n_parents: int = 4
    n_shown: int = 8
    n_attempts: int = 2
    n_replies_per_call: int = 10
    granularity: Granularity = Granularity.BLOCK
    resolution: int = 1

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} of the self_pruner_paper proposer must be at least {least}, got {getattr(self, name)}; "
                    "the default serves"
                )
        if self.resolution > MAX_PERCENT or not self.n_crossovers + self.n_mutations:
            raise ConfigError(
                f"the self_pruner_paper proposer needs a resolution of at most {MAX_PERCENT} and a child in an iteration, got "
                f"{self.resolution} and {self.n_crossovers} crossovers and {self.n_mutations} mutations; the paper has 10 of each"
            )

    @property
    def asks_language_model(self) -> bool:
        """Always."""
        return True

    def build(self, space: SearchSpace, seed: int, language_model: LanguageModel) -> Proposer:
        """A proposer that has asked nothing yet."""
        return SelfPrunerPaperProposer(space, language_model, seed, self)


@dataclass(frozen=True)
class _Slot:
    """A place in the population or in an iteration, which one proposal will take."""

    operator: str
    parents: tuple[Candidate, ...] = ()
    repair: str = ""


@dataclass
class SelfPrunerPaperProposer:
    """Fills the population, then the children of one iteration after the other, each once the last is scored.

    Example:
        >>> proposer = SelfPrunerPaperProposer(space, language_model, seed=0)
        >>> proposals = proposer.ask(20)
        >>> proposer.tell(candidates)
    """

    space: SearchSpace
    language_model: LanguageModel
    seed: int
    config: SelfPrunerPaper = field(default_factory=SelfPrunerPaper)
    name: str = field(default="self_pruner_paper", init=False)

    def __post_init__(self) -> None:
        self._rates = LayerRates(self.space, self.config.granularity, self.config.resolution)
        self._prompts = PaperPrompts(self.space, self._rates)
        self._n_calls = 0
        self._n_begun = 0
        self._is_told = True
        self._waiting: list[_Slot] = []
        self._population: list[Candidate] = []
        self._proposed: list[Allocation] = []
        self._known: dict[tuple[int, ...], str] = {}
        self._copied: dict[tuple[int, ...], str] = {}

    def ask(self, n: int) -> list[Proposal]:
        """At most `n` proposals, up to the end of the iteration; none after the last, or before the fates of the last are told.

        Raises:
            LanguageModelError: when the language model cannot serve.
        """
        proposals: list[Proposal] = []
        while len(proposals) < n and (self._waiting or self._begin()):
            # Slots without parents share their prompt, and so a call.
            n_alike = 1 if self._waiting[0].parents else min(self.config.n_replies_per_call, len(self._waiting))
            n_alike = min(n_alike, n - len(proposals))
            proposals += self._fill(self._waiting[0], n_alike)
            self._waiting = self._waiting[n_alike:]
            self._is_told = False
        return proposals

    def tell(self, candidates: list[Candidate]) -> None:
        """The best of the old population and of the own candidates among these are the new one."""
        own = [c for c in candidates if c.proposal.proposer == self.name and c.proposal.allocation is not None]
        self._population = best(self._population + own, self.config.population)
        for candidate in candidates:
            if candidate.proposal.allocation is not None:
                self._known[self.space.grid.genome(candidate.allocation)] = f"candidate {candidate.id}"
        for candidate in own:
            self._copied[self._rates.shown(candidate.allocation)] = f"candidate {candidate.id}"
        self._is_told = True

    def _begin(self) -> bool:
        """Whether there is another iteration to begin; the population counts as one before the first."""
        if not self._is_told or self._n_begun > self.config.n_iterations:
            return False
        n_children = self.config.n_crossovers + self.config.n_mutations
        if self._n_begun == 0:
            self._waiting = [_Slot("population")] * self.config.population
        elif len(self._population) < 2:
            # Where next to nothing could be read or scored there is nobody to select.
            self._waiting = [_Slot("population")] * n_children
        else:
            parents, repair = self._select()
            pairs = list(combinations(parents, 2))
            pairs += [(second, first) for first, second in pairs]
            crossed = [_Slot("crossover", pairs[i % len(pairs)], repair) for i in range(self.config.n_crossovers)]
            mutated = [_Slot("mutation", (parents[i % len(parents)],), repair) for i in range(self.config.n_mutations)]
            self._waiting = crossed + mutated
        self._n_begun += 1
        return True

    def _select(self) -> tuple[list[Candidate], str]:
        """The parents that the language model chooses, or else the best two, and what had to be mended."""
        shown = self._population[: self.config.n_shown]
        n_parents = min(self.config.n_parents, len(shown))
        prompt, schema = self._prompts.selection(shown, n_parents), parents_schema(n_parents, len(shown))
        reason = ""
        for _ in range(self.config.n_attempts):
            (reply,) = self._complete(prompt, schema, 1)
            reason = reply.failure
            if reason:
                break
            try:
                chosen, repairs = parse_parents(reply.text, n_parents, len(shown))
            except ReplyError as error:
                reason = str(error)
            else:
                return [shown[i] for i in chosen], f"selection: {_joined(repairs)}" if repairs else ""
        return shown[:2], f"selection: the best two taken ({reason})"

    def _fill(self, slot: _Slot, n: int) -> list[Proposal]:
        """`n` proposals for equal slots; where a reply gave nothing new, another is asked for."""
        proposals: dict[int, Proposal] = {}
        missing = list(range(n))
        for n_asked in range(1, self.config.n_attempts + 1):
            prompt = (
                self._prompts.child(slot.operator, slot.parents)
                if slot.parents
                else self._prompts.population(self._proposed[-self.config.n_shown :])
            )
            replies = self._complete(prompt, self._rates.schema(), len(missing))
            for i, reply in zip(missing, replies, strict=True):
                proposals[i] = self._propose(reply, slot, n_asked)
            missing = [i for i, reply in zip(missing, replies, strict=True) if proposals[i].failure and not reply.failure]
            if not missing:
                break
        return [proposals[i] for i in range(n)]

    def _propose(self, reply: Reply, slot: _Slot, n_asked: int) -> Proposal:
        """The proposal that a reply makes, or its failure to make one."""
        parents = tuple(candidate.id for candidate in slot.parents)
        repairs = [slot.repair, *([f"asked {n_asked} times"] if n_asked > 1 else [])]
        said = Proposal(None, self.name, slot.operator, parents, reply=reply.source, repair=_joined(repairs))
        if reply.failure:
            return replace(said, failure=reply.failure)
        try:
            rates, mended = self._rates.parse(reply.text)
            allocation = self.space.project(self._rates.expand(rates))
            genome = self.space.grid.genome(allocation)
            if known := self._known.get(genome) or self._copied.get(rates):
                raise ReplyError(f"duplicate of {known}")
        except ReplyError as error:
            return replace(said, failure=error.quoting(reply.text))
        if abs(self._rates.mean(rates) - 100 * self.space.target_sparsity) >= 1:
            mended.append("mean moved to the target")
        self._known[genome] = self._copied[self._rates.shown(allocation)] = "an earlier proposal"
        self._proposed.append(allocation)
        return replace(said, allocation=allocation, repair=_joined([*repairs, *mended]))

    def _complete(self, prompt: str, schema: dict[str, Any], n: int) -> list[Reply]:
        """Exactly `n` replies; those that did not come have failed."""
        seed = random.Random(f"{self.seed}/{self._n_calls}").getrandbits(31)
        self._n_calls += 1
        replies = self.language_model.complete(prompt, schema, n, seed)[:n]
        return replies + [Reply("", None, 0, 0, failure="the language model gave no reply")] * (n - len(replies))


def _joined(repairs: list[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, repairs)))
