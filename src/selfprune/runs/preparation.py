"""Makes ready, in order, what search, contest and report share: model, splits, statistics, level store, scorer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from selfprune.allocations.archive import Archive
from selfprune.allocations.budget import ContextCosts, Measure
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.objective import ObjectiveValues
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Allocation
from selfprune.configs.config import RunConfig
from selfprune.data.self_generated import text_writer
from selfprune.data.splits import Splits, draw_splits
from selfprune.evaluators.harness import Harness
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.exports.pruned_checkpoint import PrunedCheckpoint
from selfprune.language_models.base import LanguageModel
from selfprune.language_models.recorded import RecordingLanguageModel
from selfprune.language_models.self import SelfLanguageModel
from selfprune.levels.built_levels import BuiltLevels, open_statistics
from selfprune.levels.level_store import LevelStore
from selfprune.levels.levels_config import LevelKind
from selfprune.levels.mask_levels import MaskLevels
from selfprune.models.blocks.walk import windows_per_pass
from selfprune.models.chance import doubt_of_chance
from selfprune.models.fittings import fitted_in_place
from selfprune.models.loading import LoadedModel, load_model, max_positions
from selfprune.models.structures import context_costs
from selfprune.models.units import token_share
from selfprune.models.vocabulary import check_windows, n_embedding_rows
from selfprune.proposers.base import ProposerConfig, SearchSpace
from selfprune.pruning.block_numbers import look_at_blocks
from selfprune.pruning.calibration import calibrate
from selfprune.pruning.measurements import Measurements, needed_measurements
from selfprune.runs.forecasts.run_forecast import forecast_loaded, not_counted, run_seconds
from selfprune.runs.forecasts.run_memory import open_dense
from selfprune.runs.showing.display import Display
from selfprune.runs.showing.tracking import Trackers
from selfprune.search.dense_answers import DenseModelAnswers
from selfprune.search.first_round_budget import check_first_round
from selfprune.search.scoring import Scorer
from selfprune.search.search_windows import mix_search_windows
from selfprune.search.sensitivities import measure_sensitivities
from selfprune.search.workers.pooled_bench import open_bench
from selfprune.statistics.coverage import Coverage
from selfprune.storage.journal import Journal, NothingElse
from selfprune.timing.resources import Resources
from selfprune.timing.unit_seconds import check_latency_table


@dataclass(frozen=True)
class PreparedRun:
    """What search, contest and report share.

    The weights of `loaded` are changed through `store`, or in place by what brings the store back to dense before and after.
    `journal`, `archive` and `language_model` grow with what is measured and asked, `scorer` adds up its seconds, and `display`
    keeps its warnings; all else stays as it is.

    Attributes:
        config: of the run.
        folder: of the run.
        loaded: the model.
        splits: its windows for calibration, search and report.
        coverage: the calibration tokens that reached each unit of the dense model.
        block_numbers: what was measured of the dense model's blocks -> block -> number.
        store: the levels of its units.
        scorer: scores allocations on the search windows.
        objective_values: what else a candidate is judged by.
        space: what proposers may know.
        harness: the tasks of lm-eval.
        journal: of everything measured but the candidates.
        archive: of the candidates.
        language_model: is opened when it is first asked.
        display: where progress is shown.
        trackers: are told of it, too.
        checkpoint: what is written of the winner.
        expected: what the whole run takes of the machine.
    """

    config: RunConfig
    folder: Path
    loaded: LoadedModel
    splits: Splits
    coverage: Coverage
    block_numbers: dict[str, dict[int, float]]
    store: LevelStore
    scorer: Scorer
    objective_values: ObjectiveValues
    space: SearchSpace
    harness: Harness
    journal: Journal
    archive: Archive
    language_model: RecordingLanguageModel
    display: Display
    trackers: Trackers
    checkpoint: PrunedCheckpoint
    expected: Resources

    @property
    def n_sensitivity_tokens(self) -> int:
        """Tokens that the sensitivities cost, which count as the main search's."""
        return len(self.space.sensitivities) * self.config.search.n_sensitivity_windows * self.scorer.n_tokens_per_window


def prepare(config: RunConfig, folder: Path, expected: Resources) -> PreparedRun:
    """Loads, splits, calibrates and ranks; what a resumed run had measured is read back.

    Args:
        config: the typed config.
        folder: the run folder, which holds the config already.
        expected: what `preflight` came to.
    """
    display = Display()
    journal = Journal(folder / "evaluations.jsonl")
    kinds = config.objective.kinds(config.n_search_windows)
    harness = Harness(config.harness)
    with display.stage(f"loading {config.model.path}"):
        loaded = load_model(config.model).for_items(config.method.items())
        loaded = fitted_in_place(loaded, config.method.adds_biases)
        # What the model cannot do is said before anything is recorded.
        doubts = *loaded.doubts, *check_latency_table(config.budget, loaded), *harness.check(loaded.model, loaded.tokenizer)
        for doubt in doubts:
            display.warn(doubt)
        checkpoint = PrunedCheckpoint(loaded, folder / "model", by_block=False)
        expected = forecast_loaded(expected, config, loaded, harness, checkpoint.n_bytes, folder)
        grid = config.grid(loaded.units)
        costs = context_costs(loaded.model, config.budget.context)
        target = Target.of(config.budget, grid, loaded.n_parameters, partial(token_share, loaded.model), costs)
        if config.search.plain:
            target = target.tie(grid.units, getattr(config.pruner, "whole", False))
        _check_first_rounds(config, len(grid.units))
        splits = _draw_splits(config, loaded, harness, kinds)
        store = _open_store(config, loaded, grid, splits.calibration_NT, folder)
        journal.once({"splits": splits.hashes}, dict, NothingElse)
        coverage = Coverage(loaded)
    with display.stage("calibrating"):
        n_at_once = windows_per_pass(splits.calibration_NT.shape[1])
        measurements = Measurements(loaded, needed_measurements(_proposers(config)))
        calibrate(loaded, splits.calibration_NT, config.method, n_at_once, measurements, store, coverage)
        block_numbers = measurements.of_weights() | look_at_blocks(loaded, splits.calibration_NT, n_at_once)
        evaluator = _make_evaluator(config, loaded, splits)
    _warn_of_chance(display, evaluator, loaded, splits.search_NT[: config.n_search_windows])
    with display.stage("timing the pruner"):
        seconds = run_seconds(config, loaded, grid, splits, harness, evaluator.tokens_per_second)
    takes = f"the run will take about {seconds / 60:.1f} minutes{not_counted(harness)}"
    display.say(f"{evaluator.tokens_per_second:,.0f} tokens per second: {takes}")
    if not config.method.sees_weights_alone():
        coverage.warn(display.warn, "calibration")
    scorer = Scorer(open_bench(store, evaluator, config.search.workers, config.search.pool), journal)
    sensitivities = _sensitivities(config, loaded, costs, scorer, display)
    return PreparedRun(
        config,
        folder,
        loaded,
        splits,
        coverage,
        block_numbers,
        store,
        scorer,
        ObjectiveValues(kinds, _seconds(config, store.grid)),
        SearchSpace(store.grid, target, sensitivities, measurements.of_blocks, of_items=measurements.of_items),
        harness,
        journal,
        Archive(folder / "archive.jsonl"),
        RecordingLanguageModel(partial(_open_language_model, config, loaded, store), folder / "language_model_calls.jsonl"),
        display,
        Trackers.open(config.trackers, folder),
        checkpoint,
        replace(expected, seconds=seconds),
    )


def _check_first_rounds(config: RunConfig, n_units: int) -> None:
    """Every search must be able to begin; the main one pays for sensitivities and yardsticks, too."""
    windows = config.n_search_windows, config.data.n_tokens_per_window
    n_yardsticks = len(config.yardsticks) if config.search.race_yardsticks else 0
    check_first_round("main", config.search, config.proposer, *windows, n_yardsticks, n_units)
    for name, control in config.controls.items():
        check_first_round(name, config.search, control, *windows)


def _open_language_model(config: RunConfig, loaded: LoadedModel, store: LevelStore) -> LanguageModel:
    inner: LanguageModel = config.language_model.build(loaded.model, loaded.tokenizer)
    return DenseModelAnswers(inner, store) if isinstance(config.language_model, SelfLanguageModel) else inner


def _draw_splits(config: RunConfig, loaded: LoadedModel, harness: Harness, kinds: Sequence[str]) -> Splits:
    generate = text_writer(loaded.model, loaded.tokenizer, config.data)
    splits = draw_splits(config.data, loaded.tokenizer, config.seed, generate, max_positions(loaded.model))
    splits = mix_search_windows(splits, kinds, loaded, harness, config.seed)
    for split, windows_NT in (("calibration", splits.calibration_NT), ("search", splits.search_NT), ("report", splits.report_NT)):
        check_windows(windows_NT, loaded.tokenizer, n_embedding_rows(loaded.model), split)
    return splits


def _open_store(config: RunConfig, loaded: LoadedModel, grid: LevelGrid, windows_NT: Tensor, folder: Path) -> LevelStore:
    """The level store, still empty."""
    dense, levels = open_dense(config, loaded), config.search.levels
    if config.level_kind is LevelKind.MASKS:
        return MaskLevels(loaded, grid, config.method, dense)
    statistics = open_statistics(loaded, grid, config.method, windows_NT, windows_per_pass(windows_NT.shape[1]), levels, folder)
    return BuiltLevels(loaded, grid, config.method, statistics, int(levels.memory_gb * 1e9), dense)


def _proposers(config: RunConfig) -> list[ProposerConfig]:
    """All that propose in a run."""
    return [config.proposer, *config.yardsticks.values(), *config.controls.values()]


def _make_evaluator(config: RunConfig, loaded: LoadedModel, splits: Splits) -> WindowEvaluator:
    return WindowEvaluator(
        {"score": config.evaluator},
        loaded.model,
        loaded.blocks,
        splits.search_NT[: config.n_search_windows],
        config.search.batch_size,
        config.search.prefix_cache_mb * 10**6,
    )


def _warn_of_chance(display: Display, evaluator: WindowEvaluator, loaded: LoadedModel, windows_NT: Tensor) -> None:
    doubt = doubt_of_chance(evaluator.dense_nll_per_token, windows_NT, loaded.model.config.get_text_config().vocab_size)
    if doubt is not None:
        display.warn(doubt)


def _seconds(config: RunConfig, grid: LevelGrid) -> Callable[[Allocation], float] | None:
    """What the units of an allocation would take by the latency table, where that is the budget."""
    if config.budget.measure is not Measure.LATENCY:
        return None
    table = config.budget.table()
    return lambda allocation: math.fsum(table.seconds(unit, allocation[unit.name] / unit.n_items) for unit in grid.units)


def _sensitivities(
    config: RunConfig, loaded: LoadedModel, costs: ContextCosts, scorer: Scorer, display: Display
) -> dict[str, float]:
    """The sensitivities at the sparsity that the budget takes of all units alike; none where they are not asked for."""
    units, n_windows = scorer.grid.units, config.search.n_sensitivity_windows
    if not n_windows:
        return {}
    sparsity = config.budget.uniform_sparsity(units, loaded.n_parameters, costs)
    with display.stage("measuring sensitivities", total=len(units)) as update:
        return measure_sensitivities(scorer, sparsity, n_windows, update)
