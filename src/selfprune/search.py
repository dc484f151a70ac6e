"""The search loop: ask, race, record, tell, until the budget ends."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from selfprune.archive import Archive
from selfprune.candidate import Candidate, Proposal, best
from selfprune.errors import ConfigError
from selfprune.proposers.base import Proposer
from selfprune.racing import Ladder, Racer

logger = logging.getLogger(__name__)

MAX_IDLE_ROUNDS = 10
"""Rounds in a row whose proposals all failed before they were scored, after which a search ends."""


@dataclass
class SearchConfig:
    """What one search may spend, and how.

    Attributes:
        max_tokens: tokens of evaluation; a round that has begun is finished.
        max_candidates: candidates; none when null.
        max_seconds: wall-clock seconds; none when null. A search that ends so does not repeat exactly.
        n_per_round: proposals asked for at once.
        ladder: racing.
        n_finalists: best candidates that are scored on the lm-eval search documents.
        n_sensitivity_windows: search windows on which every unit is pruned alone, before the search, to tell proposers how
            sensitive it is; a number that `ladder` stops at, or 0 for no such measurement.
        level_fraction: step of the level grid as a fraction of the smallest unit.
        max_sparsity: highest sparsity of any unit.
        batch_size: windows per forward pass.
        prefix_cache_mb: bound on the hidden states kept for prefix reuse, in MB.
    """

    max_tokens: int = 200_000
    max_candidates: int | None = None
    max_seconds: float | None = None
    n_per_round: int = 16
    ladder: Ladder = field(default_factory=Ladder)
    n_finalists: int = 3
    n_sensitivity_windows: int = 4
    level_fraction: float = 0.05
    max_sparsity: float = 1.0
    batch_size: int = 4
    prefix_cache_mb: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_tokens", "n_per_round", "n_finalists", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("level_fraction", "max_sparsity"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"search.{name} must lie in (0, 1], got {getattr(self, name)}")
        if self.n_sensitivity_windows not in (0, *self.ladder.n_windows):
            raise ConfigError(
                f"search.n_sensitivity_windows must be 0 or one of search.ladder.n_windows {self.ladder.n_windows}, "
                f"got {self.n_sensitivity_windows}"
            )
        if self.prefix_cache_mb < 0:
            raise ConfigError(
                f"search.prefix_cache_mb must not be negative, got {self.prefix_cache_mb}; 0 turns prefix reuse off"
            )


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Attributes:
        search: its name.
        best_score: lowest score of a COMPLETE candidate; None before the first.
        n_candidates: candidates so far.
        n_tokens: tokens spent.
        seconds: since the search began or was resumed.
    """

    search: str
    best_score: float | None
    n_candidates: int
    n_tokens: int
    seconds: float


def run_search(
    name: str,
    proposer: Proposer,
    racer: Racer,
    archive: Archive,
    config: SearchConfig,
    yardsticks: Sequence[Proposal] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Candidate]:
    """Searches until a limit is reached or the proposer has no more to say.

    Args:
        name: of the search, as it stands in the archive.
        proposer: asked and told.
        racer: scores proposals.
        archive: receives every candidate.
        config: limits and round size.
        yardsticks: known allocations that are scored first, on all windows.
        on_progress: called after every round.

    Returns:
        the candidates of this search.
    """
    began = time.monotonic()

    def record(proposals: Sequence[Proposal], keep_all: bool) -> None:
        candidates = racer.race(name, len(archive.candidates), proposals, keep_all)
        archive.extend(candidates)
        proposer.tell(candidates)
        ours = archive.of(name)
        leader = best(ours)
        state = Progress(name, leader[0].score if leader else None, len(ours), _n_tokens(ours), time.monotonic() - began)
        logger.info("%s: %d candidates, %d tokens, best %s", name, state.n_candidates, state.n_tokens, state.best_score)
        on_progress(state)

    if yardsticks:
        record(yardsticks, keep_all=True)
    n_idle_rounds = 0
    while n_idle_rounds < MAX_IDLE_ROUNDS and _within(config, archive.of(name), time.monotonic() - began):
        n_before = _n_tokens(archive.of(name))
        proposals = proposer.ask(config.n_per_round)
        if not proposals:
            break
        record(proposals, keep_all=False)
        n_idle_rounds = n_idle_rounds + 1 if _n_tokens(archive.of(name)) == n_before else 0
    return archive.of(name)


def _within(config: SearchConfig, candidates: list[Candidate], seconds: float) -> bool:
    if config.max_candidates is not None and len(candidates) >= config.max_candidates:
        return False
    if config.max_seconds is not None and seconds >= config.max_seconds:
        return False
    return _n_tokens(candidates) < config.max_tokens


def _n_tokens(candidates: list[Candidate]) -> int:
    return sum(candidate.n_tokens for candidate in candidates)
