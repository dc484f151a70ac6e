"""Everything that the stages of a run share, made ready in order: model, splits, statistics, level store, racer."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from selfprune.allocation import LevelGrid, Unit
from selfprune.archive import Archive
from selfprune.calibration import calibrate_blocks
from selfprune.config import RunConfig
from selfprune.data import Splits, draw_splits
from selfprune.errors import ConfigError
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.journal import Journal
from selfprune.language_models.base import LanguageModel, Reply
from selfprune.language_models.recorded import RecordingLanguageModel
from selfprune.level_store import LevelStore, rank_units
from selfprune.models import LoadedModel, load_model
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.owl import OWL, outlier_ratio
from selfprune.proposers.portfolio import Portfolio
from selfprune.pruners.wanda import Wanda, wanda_metric
from selfprune.racing import Racer
from selfprune.self_generated import generate_tokens
from selfprune.tracking import Display
from selfprune.units import weight_view


@dataclass
class Workbench:
    """What the stages of one run share."""

    config: RunConfig
    folder: Path
    loaded: LoadedModel
    splits: Splits
    store: LevelStore
    racer: Racer
    space: SearchSpace
    harness: Harness
    journal: Journal
    archive: Archive
    language_model: RecordingLanguageModel
    display: Display
    expected_seconds: float

    @property
    def n_sensitivity_tokens(self) -> int:
        """Tokens that the sensitivities cost, which count as the main search's."""
        return len(self.space.sensitivities) * self.config.search.n_sensitivity_windows * self.racer.evaluator.n_tokens_per_window


class _DenseModelAnswers:
    """The model under pruning as a language model: its dense weights are put back before it is asked."""

    def __init__(self, inner: LanguageModel, store: LevelStore) -> None:
        self.inner, self.store, self.name = inner, store, inner.name

    def complete(self, prompt: str, schema: dict[str, Any], n: int, seed: int) -> list[Reply]:
        """Replies of the dense model."""
        self.store.restore()
        return self.inner.complete(prompt, schema, n, seed)


def prepare(config: RunConfig, folder: Path) -> Workbench:
    """Loads, splits, calibrates and ranks; what a resumed run had measured is read back.

    Args:
        config: the typed config.
        folder: the run folder, which holds the config already.
    """
    display = Display()
    journal = Journal(folder / "evaluations.jsonl")
    with display.stage(f"loading {config.model.path}"):
        loaded = load_model(config.model)
        window = config.data.n_tokens_per_window

        def generate(n_tokens: int, seed: int) -> Tensor:
            return generate_tokens(loaded.model, loaded.tokenizer, math.ceil(n_tokens / window), window, seed).flatten()

        splits = draw_splits(config.data, loaded.tokenizer, config.seed, generate, loaded.max_positions)
        harness = Harness(config.harness)
        journal.once({"splits": splits.hashes}, dict)
    fraction = config.pruner.level_fraction()
    grid = (
        LevelGrid.with_constant_step(loaded.units, config.search.level_fraction, config.search.max_sparsity)
        if fraction is None
        else LevelGrid.with_single_level(loaded.units, fraction)
    )
    with display.stage("calibrating"):
        batch_size = config.search.batch_size
        ranks, outliers = _rank(config, loaded, splits)
        store = LevelStore(loaded, grid, ranks)
        ladder = config.search.ladder
        windows_NT = splits.search_NT[: ladder.n_windows[-1]]
        evaluator = WindowEvaluator(
            {"score": config.evaluator},
            loaded.model,
            loaded.blocks,
            windows_NT,
            batch_size,
            ladder.n_windows,
            config.search.prefix_cache_mb * 10**6,
        )
    n_rows = 2 + len(config.yardsticks) + len(config.controls)
    n_tokens = (1 + len(config.controls)) * config.search.max_tokens + n_rows * splits.report_NT.numel()
    seconds = n_tokens / evaluator.tokens_per_second
    display.say(f"{evaluator.tokens_per_second:,.0f} tokens per second: the run will take about {seconds / 60:.1f} minutes")
    racer = Racer(store, evaluator, ladder, journal)
    sensitivities = _sensitivities(config, racer, display)
    space = SearchSpace(grid, config.budget.n_target_weights(grid), sensitivities, outliers)
    language_model = RecordingLanguageModel(
        lambda: _DenseModelAnswers(config.language_model.build(loaded.model, loaded.tokenizer), store),
        folder / "language_model_calls.jsonl",
    )
    archive = Archive(folder / "archive.jsonl")
    return Workbench(
        config, folder, loaded, splits, store, racer, space, harness, journal, archive, language_model, display, seconds
    )


def _rank(config: RunConfig, loaded: LoadedModel, splits: Splits) -> tuple[dict[str, Tensor], dict[int, float]]:
    """The ranks of every unit's weights, and OWL's D per block on dense inputs, if any allocation needs it.

    One block's statistics are held at a time.
    """
    ranks: dict[str, Tensor] = {}
    outliers: dict[int, float] = {}
    threshold = _outlier_threshold(config)

    def measure_outliers(units: list[Unit], statistics: dict[str, Any]) -> None:
        metrics = [wanda_metric(weight_view(loaded.model, unit), statistics[unit.name]) for unit in units]
        outliers[units[0].block] = outlier_ratio(metrics, threshold)

    for units, statistics in calibrate_blocks(loaded, splits.calibration_NT, config.pruner, config.search.batch_size):
        ranks |= rank_units(loaded, units, config.pruner, statistics)
        if threshold and all(hasattr(gathered, "means") for gathered in statistics.values()):
            measure_outliers(units, statistics)
    if threshold and not outliers:
        for units, statistics in calibrate_blocks(loaded, splits.calibration_NT, Wanda(), config.search.batch_size):
            measure_outliers(units, statistics)
    return ranks, outliers


def _outlier_threshold(config: RunConfig) -> float:
    """The one threshold that all OWL allocations of the run share; 0 when there is none.

    Raises:
        ConfigError: when they ask for different ones.
    """
    arms = config.proposer.arms.values() if isinstance(config.proposer, Portfolio) else [config.proposer]
    forms = [*config.yardsticks.values(), *arms, *config.controls.values()]
    thresholds = {form.outlier_threshold for form in forms if isinstance(form, OWL)}
    if len(thresholds) > 1:
        raise ConfigError(f"all OWL allocations of a run must share one outlier_threshold, got {sorted(thresholds)}")
    return max(thresholds, default=0.0)


def _sensitivities(config: RunConfig, racer: Racer, display: Display) -> dict[str, float]:
    """Unit name -> rise of the score when this unit alone is pruned at the target."""
    n_windows, grid = config.search.n_sensitivity_windows, racer.store.grid
    if not n_windows:
        return {}
    dense = dict.fromkeys(racer.store.allocation, 0)
    dense_scores = racer.evaluator.dense_scores[:n_windows]
    rises = {}
    with display.stage("measuring sensitivities", total=len(grid.units)) as update:
        for i, unit in enumerate(grid.units):
            steps = min(math.ceil(config.budget.sparsity * unit.n_items / grid.step[unit.name]), grid.n_levels[unit.name])
            alone = {**dense, unit.name: steps * grid.step[unit.name]}
            record = racer.journal.once({"sensitivity": unit.name}, partial(racer.measure, alone, 0, n_windows))
            rises[unit.name] = (math.fsum(record["window_scores"]) - math.fsum(dense_scores)) / n_windows
            update(i + 1)
    return rises
