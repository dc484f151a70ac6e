"""The search loop: ask, race, record, tell, until the budget ends."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from typing_extensions import TypedDict

from selfprune.allocations.archive import Archive
from selfprune.allocations.candidate import Candidate, Proposal
from selfprune.errors import ConfigError
from selfprune.levels.levels_config import LevelsConfig
from selfprune.proposers.base import Proposer
from selfprune.search.ladder import Ladder
from selfprune.search.racing import Racer
from selfprune.search.swap_gradients import SwapGradients

logger = logging.getLogger(__name__)

MAX_IDLE_ROUNDS = 10
"""Rounds in a row that cost nothing, since all their proposals failed or were known, after which a search ends."""


@dataclass
class SearchConfig:
    """What one search may spend, and how.

    Attributes:
        max_tokens: tokens of evaluation that the search spends at most, on sensitivities, yardsticks, gradients, candidates and
            the final heat; a run whose first round costs more is refused. What the report measures does not count.
        max_candidates: candidates; none when null.
        max_seconds: wall-clock seconds since the search was begun, resumed or extended; none when null. A search that ends so
            does not repeat exactly in another run.
        n_per_round: proposals asked for at once; fewer where the tokens left do not see as many through the first rung.
        ladder: racing.
        race_yardsticks: the yardsticks are the first candidates; otherwise they are only reported.
        n_finalists: last champions that meet on all windows at the end, as many as the tokens left pay for, and then on the
            lm-eval search documents.
        n_sensitivity_windows: search windows on which every unit is pruned alone, before the search, to tell proposers how
            sensitive it is; a number that `ladder` stops at, or 0 for no such measurement. Costs as many windows for every unit.
        level_fraction: step of the level grid as a fraction of the smallest unit.
        max_sparsity: highest sparsity of any unit.
        finer: glob over unit kinds -> how many levels of such a unit take the place of one, as in {"self_attn.*": 2}.
        batch_size: windows per forward pass.
        prefix_cache_mb: bound on the hidden states kept for prefix reuse, in MB.
        levels: how candidates get their weights.
    """

    max_tokens: int = 200_000
    max_candidates: int | None = None
    max_seconds: float | None = None
    n_per_round: int = 4
    ladder: Ladder = field(default_factory=Ladder)
    race_yardsticks: bool = True
    n_finalists: int = 3
    n_sensitivity_windows: int = 0
    level_fraction: float = 0.05
    max_sparsity: float = 1.0
    finer: dict[str, int] = field(default_factory=dict)
    batch_size: int = 4
    prefix_cache_mb: int = 1024
    levels: LevelsConfig = field(default_factory=LevelsConfig)

    def __post_init__(self) -> None:
        for name in ("max_tokens", "n_per_round", "n_finalists", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search.{name} must be at least 1, got {getattr(self, name)}")
        if self.max_candidates is not None and self.max_candidates < 1:
            raise ConfigError(f"search.max_candidates must be at least 1, or null for no limit, got {self.max_candidates}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ConfigError(f"search.max_seconds must be above 0, or null for no limit, got {self.max_seconds}")
        for name in ("level_fraction", "max_sparsity"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"search.{name} must lie in (0, 1], got {getattr(self, name)}")
        for glob, divisor in self.finer.items():
            if divisor < 1:
                raise ConfigError(f"search.finer must divide the step by 1 or more, got {divisor} for {glob}")
        if self.n_sensitivity_windows not in (0, *self.ladder.rungs):
            raise ConfigError(
                f"search.n_sensitivity_windows must be 0 or one of search.ladder.n_windows {self.ladder.rungs}, "
                f"got {self.n_sensitivity_windows}"
            )
        if self.prefix_cache_mb < 0:
            raise ConfigError(
                f"search.prefix_cache_mb must not be negative, got {self.prefix_cache_mb}; 0 turns prefix reuse off"
            )


class TimeLimit(TypedDict):
    """What the journal keeps of a look at the clock."""

    is_over: bool


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Attributes:
        search: its name.
        best_score: the incumbent's score, on the windows of the highest rung that is open; None before the first.
        n_candidates: candidates so far.
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
    """

    def __init__(
        self,
        proposer: Proposer,
        racer: Racer,
        archive: Archive,
        yardsticks: Sequence[Proposal] = (),
        on_progress: Callable[[Progress], None] = lambda progress: None,
        n_tokens_before: int = 0,
        gradients: SwapGradients | None = None,
    ) -> None:
        self.candidates: list[Candidate] = []
        self.n_tokens = n_tokens_before
        self._proposer, self._racer, self._archive, self._gradients = proposer, racer, archive, gradients
        self._waiting, self._on_progress = list(yardsticks), on_progress
        self._began = 0.0

    def go_on(self, config: SearchConfig) -> None:
        """Searches until a limit is reached or the proposer has no more to say; then the last champions meet on all windows.

        Args:
            config: limits and round size; the limits count everything since the search was begun, but for the seconds.
        """
        self._began = time.monotonic()
        # Kept back for the final heat, but the first round comes before it.
        reserved = self._racer.n_tokens_of_final_heat(config.n_finalists)
        paid = self._waiting[: self._racer.n_payable_entrants(config.max_tokens - self.n_tokens)]
        self._waiting = []
        if paid:
            self._race(paid, config.max_tokens - self.n_tokens)
        n_idle_rounds = 0
        while n_idle_rounds < MAX_IDLE_ROUNDS:
            n_left = config.max_tokens - self.n_tokens - reserved
            n_asked = min(config.n_per_round, self._racer.n_payable_entrants(n_left))
            is_full = config.max_candidates is not None and len(self.candidates) >= config.max_candidates
            if n_asked < 1 or is_full or self._is_out_of_time(config.max_seconds):
                break
            if self._gradients:
                self._gradients.max_tokens = n_left - self._racer.n_tokens_of_entrants(n_asked)
            proposals = self._proposer.ask(n_asked)
            if not proposals:
                break
            n_idle_rounds = 0 if self._race(proposals, config.max_tokens - self.n_tokens - reserved) else n_idle_rounds + 1
            reserved = self._racer.n_tokens_of_final_heat(config.n_finalists)
        n_left = config.max_tokens - self.n_tokens
        if finalists := self._racer.final_heat(len(self._archive.candidates), config.n_finalists, n_left):
            self._record(finalists)

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
        self._on_progress(Progress(name, score, len(self.candidates), self.n_tokens, time.monotonic() - self._began))
        return spent

    def _is_out_of_time(self, limit: float | None) -> bool:
        if limit is None:
            return False
        # Recorded, because a resumed search must end where this one does.
        key = {"search": self._racer.search, "candidates": len(self.candidates)}
        made = self._racer.scorer.journal.once(key, lambda: {"is_over": time.monotonic() - self._began >= limit}, TimeLimit)
        return made["is_over"]


def run_search(
    proposer: Proposer,
    racer: Racer,
    archive: Archive,
    config: SearchConfig,
    yardsticks: Sequence[Proposal] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,
    n_tokens_before: int = 0,
    gradients: SwapGradients | None = None,
) -> list[Candidate]:
    """A `Search` that is begun and ends with the limits of one config.

    Returns:
        the candidates of this search.
    """
    search = Search(proposer, racer, archive, yardsticks, on_progress, n_tokens_before, gradients)
    search.go_on(config)
    return search.candidates
