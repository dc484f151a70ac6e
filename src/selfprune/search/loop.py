"""The search loop: ask, race, record, tell, until the budget ends."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from typing_extensions import TypedDict

from selfprune.allocations.archive import Archive
from selfprune.allocations.candidate import Candidate, Proposal
from selfprune.proposers.base import Proposer
from selfprune.search.gradient_values import GradientValues
from selfprune.search.racing import Racer
from selfprune.search.search_config import SearchConfig

logger = logging.getLogger(__name__)

MAX_IDLE_ROUNDS = 10
"""Rounds in a row that cost nothing, since all their proposals failed or were known, after which a search ends."""

FINAL_SHARE = 0.25
"""Most that is kept back for the final rung, as a share of all tokens: at a small budget, further candidates bring more."""


class TimeLimit(TypedDict):
    """What the journal keeps of a look at the clock."""

    is_over: bool


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Attributes:
        search: its name.
        best_score: the incumbent's score, on the windows of the highest rung that is open; None before the first.
        n_candidates: candidates that were proposed so far.
        n_tokens: tokens spent.
        seconds: since the search was begun, resumed or extended.
    """

    search: str
    best_score: float | None
    n_candidates: int
    n_tokens: int
    seconds: float


class Search:
    """One search, which goes on with the same proposer and the same champions whenever its limits are raised.

    Args:
        proposer: asked and told.
        racer: scores proposals.
        archive: receives every candidate.
        yardsticks: known allocations that race first.
        on_progress: called after every round.
        n_tokens_before: tokens that the search has spent already, on sensitivities.
        gradients: those that the proposer asks, which are told what they may cost.

    Attributes:
        candidates: those of this search.
        n_tokens: tokens spent.
        ending: why it ended, as the end of a sentence; empty before.
    """

    def __init__(
        self,
        proposer: Proposer,
        racer: Racer,
        archive: Archive,
        yardsticks: Sequence[Proposal] = (),
        on_progress: Callable[[Progress], None] = lambda progress: None,
        n_tokens_before: int = 0,
        gradients: GradientValues | None = None,
    ) -> None:
        self.candidates: list[Candidate] = []
        self.n_tokens = n_tokens_before
        self.ending = ""
        self._proposer, self._racer, self._archive, self._gradients = proposer, racer, archive, gradients
        self._waiting, self._on_progress = list(yardsticks), on_progress
        self._began = 0.0

    def go_on(self, config: SearchConfig) -> None:
        """Searches until a limit is reached or the proposer has no more to say; then the last champions meet on all windows.

        Args:
            config: limits and round size; the limits count everything since the search was begun, but for the seconds.
        """
        self._began = time.monotonic()
        # The first round comes before what is kept back for the final rung.
        n_reserved = self._n_reserved(config)
        paid = min(self._n_missing(config), self._racer.n_payable_entrants(config.max_tokens - self.n_tokens))
        first, self._waiting = self._waiting[:paid], []
        if first:
            self._race(first, config.max_tokens - self.n_tokens)
        self.ending, n_idle_rounds = "", 0
        while n_idle_rounds < MAX_IDLE_ROUNDS and (proposals := self._ask(config, n_reserved)):
            spent = self._race(proposals, config.max_tokens - self.n_tokens - n_reserved)
            n_idle_rounds = 0 if spent else n_idle_rounds + 1
            n_reserved = self._n_reserved(config)
        self.ending = self.ending or f"{MAX_IDLE_ROUNDS} rounds in a row brought nothing new to score"
        n_left = config.max_tokens - self.n_tokens
        if finalists := self._racer.final_rung(len(self._archive.candidates), config.n_finalists, n_left):
            self._record(finalists)

    def _ask(self, config: SearchConfig, n_reserved: int) -> list[Proposal]:
        """The proposals of a round; none, and the ending, where a limit is reached or the proposer has none.

        Args:
            config: limits and round size.
            n_reserved: tokens that are kept back.
        """
        n_left = config.max_tokens - self.n_tokens - n_reserved
        n_most = min(config.n_per_round, self._racer.n_payable_entrants(n_left))
        n_missing = self._n_missing(config)
        what_is_left = f"what is left of its {config.max_tokens:,} tokens does not pay for"
        if n_most < 1:
            self.ending = f"{what_is_left} another candidate"
        elif n_missing < 1:
            self.ending = f"search.max_candidates={config.max_candidates} was reached"
        elif self._is_out_of_time(config.max_seconds):
            self.ending = f"search.max_seconds={config.max_seconds} was reached"
        if self.ending:
            return []
        # Fewer candidates leave more for the gradients that come before them.
        for n_asked in range(min(n_most, n_missing), 0, -1):
            if self._gradients:
                self._gradients.grant(n_left - self._racer.n_tokens_of_entrants(n_asked))
            if proposals := self._proposer.ask(n_asked):
                return proposals
        is_dear = self._gradients is not None and self._gradients.was_refused
        self.ending = f"{what_is_left} the proposer's gradients" if is_dear else "the proposer had nothing more to propose"
        return []

    def _n_missing(self, config: SearchConfig) -> int:
        """Candidates that may still be proposed."""
        return sys.maxsize if config.max_candidates is None else config.max_candidates - self._n_proposed

    @property
    def _n_proposed(self) -> int:
        return sum(not candidate.is_champion_again for candidate in self.candidates)

    def _n_reserved(self, config: SearchConfig) -> int:
        """Tokens that are kept back for the final rung: those of as many finalists as they may cost."""
        most = min(int(FINAL_SHARE * config.max_tokens), config.max_tokens - self.n_tokens)
        costs = map(self._racer.n_tokens_of_final_rung, range(config.n_finalists, 0, -1))
        return next((cost for cost in costs if cost <= most), 0)

    def _race(self, proposals: Sequence[Proposal], max_tokens: int) -> int:
        """What the race of some proposals cost."""
        raced = self._racer.race(len(self._archive.candidates), proposals, max_tokens)
        spent = self._record(raced)
        self._proposer.tell(raced)
        return spent

    def _record(self, found: list[Candidate]) -> int:
        self._archive.extend(found)
        self.candidates.extend(found)
        spent = sum(candidate.n_tokens for candidate in found)
        self.n_tokens += spent
        name, incumbent = self._racer.search, self._racer.incumbent
        score = incumbent.score if incumbent else None
        logger.info("%s: %d candidates, %d tokens, best %s", name, len(self.candidates), self.n_tokens, score)
        self._on_progress(Progress(name, score, self._n_proposed, self.n_tokens, time.monotonic() - self._began))
        return spent

    def _is_out_of_time(self, limit: float | None) -> bool:
        if limit is None:
            return False
        # Recorded, because a resumed search must end where this one does.
        key = {"search": self._racer.search, "candidates": len(self.candidates)}
        made = self._racer.scorer.journal.once(key, lambda: {"is_over": time.monotonic() - self._began >= limit}, TimeLimit)
        return made["is_over"]
