"""What a search may spend, and how."""

from dataclasses import dataclass, field
from enum import Enum

from selfprune.errors import ConfigError
from selfprune.levels.levels_config import LevelsConfig
from selfprune.search.ladder import Ladder


class Memory(str, Enum):
    """Where the dense weights are while a search changes the model's: see `SearchConfig`."""

    AUTO = "AUTO"
    WHOLE = "WHOLE"
    LEAN = "LEAN"


class PoolKind(str, Enum):
    """What the processes of `search.workers` are."""

    PROCESSES = "PROCESSES"
    RAY = "RAY"


@dataclass
class SearchConfig:
    """What one search may spend, and how.

    Attributes:
        max_tokens: tokens of evaluation that the search spends at most, on sensitivities, yardsticks, gradients, candidates and
            the final rung; a run whose first round costs more is refused. What the report measures does not count.
        max_candidates: candidates that are proposed, yardsticks that race included; none when null. Older champions that are
            scored on further windows do not count.
        max_seconds: wall-clock seconds since the search was begun, resumed or extended; none when null. A search that ends so
            does not repeat exactly in another run.
        n_per_round: proposals asked for at once; fewer where the tokens left do not see as many through the first rung.
        ladder: racing.
        plain: of heads and channels, only allocations whose checkpoint stock transformers loads: one width everywhere, or with
            `pruner.whole=true` whole blocks.
        race_yardsticks: the yardsticks are the first candidates; otherwise they are only reported.
        n_finalists: last champions that meet on all windows at the end, as many as the tokens left pay for, and then on the
            lm-eval search documents.
        n_sensitivity_windows: search windows on which every unit is pruned alone, before the search, to tell proposers how
            sensitive it is; a number that `ladder` stops at, or 0 for no such measurement. Costs as many windows for every unit.
        level_fraction: step of the level grid as a fraction of the smallest unit.
        max_sparsity: highest sparsity of any unit.
        finer: glob over unit kinds -> how many levels of such a unit take the place of one, as in {"self_attn.*": 2}.
        batch_size: search or report windows that share a forward pass at most: a matter of memory and time, which changes no
            result on CPU.
        workers: processes that score candidates and take gradients side by side, each with one thread; the archive is that of a
            single process with one thread. They prune and measure the rows of the report, too.
        pool: PROCESSES are of this machine, on CPU, and share the memory of weights and levels; RAY starts actors in the cluster
            that RAY_ADDRESS names, or here, each with a copy of all, and a GPU where the model is on one.
        memory: WHOLE keeps a copy of the units' dense weights, and their levels, beside the model; LEAN reads the weights from
            the checkpoint when a unit's level changes, and keeps levels in main memory; AUTO is WHOLE where that fits. Results
            are the same.
        prefix_cache_mb: bound on the hidden states kept for prefix reuse, in MB.
        levels: how candidates get their weights.
    """

    max_tokens: int = 200_000
    max_candidates: int | None = None
    max_seconds: float | None = None
    n_per_round: int = 4
    ladder: Ladder = field(default_factory=Ladder)
    plain: bool = False
    race_yardsticks: bool = True
    n_finalists: int = 3
    n_sensitivity_windows: int = 0
    level_fraction: float = 0.05
    max_sparsity: float = 1.0
    finer: dict[str, int] = field(default_factory=dict)
    batch_size: int = 4
    workers: int = 1
    pool: PoolKind = PoolKind.PROCESSES
    memory: Memory = Memory.AUTO
    prefix_cache_mb: int = 256
    levels: LevelsConfig = field(default_factory=LevelsConfig)

    def __post_init__(self) -> None:
        for name in ("max_tokens", "n_per_round", "n_finalists", "batch_size", "workers"):
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
