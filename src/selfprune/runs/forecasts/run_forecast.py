"""Forecasts memory and disk of a run before its model is read, and disk and seconds more exactly when it is loaded."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from selfprune.allocations.level_grid import LevelGrid
from selfprune.configs.config import RunConfig
from selfprune.data.splits import Splits
from selfprune.evaluators.harness import Harness
from selfprune.levels.levels_config import LevelKind
from selfprune.models.loading import LoadedModel, preflight_memory
from selfprune.models.memory_check import LIBRARY_BYTES
from selfprune.runs.forecasts.disk_check import check_disk
from selfprune.runs.forecasts.run_memory import check_generation, held_bytes, level_bytes
from selfprune.timing.pruning_seconds import pruning_seconds, solve_seconds
from selfprune.timing.resources import Resources

HARNESS_BYTES = 300_000_000
"""Main memory of lm-eval and the libraries of data that a run adds to those of any command."""
RECORD_BYTES = 50_000_000
"""Disk for records, report and pictures."""
SHARE_OF_LEVELS = 0.75
"""Of the levels that there are, what a search of the default length builds."""


def forecast_run(config: RunConfig, folder: Path) -> tuple[Resources, str]:
    """What a run needs, by the sizes of its model alone, and the same in words.

    Args:
        config: of the run.
        folder: of the run.

    Raises:
        ModelError: when the model does not fit into memory.
        SelfpruneError: when the results do not fit onto the disk.
    """
    estimate = preflight_memory(config.model, partial(held_bytes, config))
    n_written = estimate.n_parameters * estimate.bytes_per_weight + RECORD_BYTES
    n_written += _of_training(config, estimate.n_parameters, estimate.skeleton)
    check_disk(n_written, folder, "the run", "run_folder")
    needs = (
        f"{estimate.n_parameters:,} parameters; the run needs about {estimate.needed_bytes / 1e9:.2f} GB of memory and "
        f"{n_written / 1e9:.2f} GB of disk"
    )
    in_memory, on_disk = level_bytes(config, estimate.skeleton, estimate.bytes_per_weight)
    if config.level_kind is LevelKind.BUILT:
        needs += f"; built levels may take {in_memory / 1e9:.2f} and {on_disk / 1e9:.2f} GB more (search.levels)"
    # what is measured on a GPU is the GPU's memory, and levels lie in main memory
    main_bytes = LIBRARY_BYTES + HARNESS_BYTES + in_memory if config.model.torch_device().type == "cpu" else 0
    return Resources(estimate.needed_bytes + main_bytes, n_written + _in_folder(config, on_disk), 0.0), needs


def forecast_loaded(
    expected: Resources, config: RunConfig, loaded: LoadedModel, harness: Harness, n_checkpoint_bytes: int, folder: Path
) -> Resources:
    """The forecast when the model is loaded: with the tasks that let it write, and with all that the pruned model holds.

    Args:
        expected: by the sizes of the model alone.
        config: of the run.
        loaded: its model.
        harness: its tasks.
        n_checkpoint_bytes: of all files of the pruned model, those that it takes from its source included.
        folder: of the run.

    Raises:
        ModelError: when keys and values do not fit into memory.
        SelfpruneError: when the results do not fit onto the disk.
    """
    n_more = check_generation(config, loaded, harness.cache_bytes(loaded.model, loaded.tokenizer))
    n_written = n_checkpoint_bytes + RECORD_BYTES + _of_training(config, loaded.n_parameters, loaded.model)
    check_disk(n_written, folder, "the run", "run_folder")
    _, on_disk = level_bytes(config, loaded.model, loaded.model.dtype.itemsize)
    memory = None if expected.peak_memory_bytes is None else expected.peak_memory_bytes + n_more
    return replace(expected, peak_memory_bytes=memory, disk_bytes=n_written + _in_folder(config, on_disk))


def _of_training(config: RunConfig, n_parameters: int, model: Any) -> int:
    """What a training needs of the disk."""
    n_vocabulary = model.config.get_text_config().vocab_size
    n_bytes: int = config.training.disk_bytes(n_parameters, config.data.n_tokens_per_window, n_vocabulary)
    return n_bytes + config.schedule.disk_bytes(n_parameters)


def _in_folder(config: RunConfig, n_level_bytes: int) -> int:
    """What built levels take in the run folder: nothing where they were given a folder of their own, in which they stay."""
    return 0 if config.search.levels.folder else n_level_bytes


def run_seconds(
    config: RunConfig, loaded: LoadedModel, grid: LevelGrid, splits: Splits, harness: Harness, tokens_per_second: float
) -> float:
    """Seconds of scoring, of building levels, and of pruning and measuring every row of the report and every finalist.

    The requests of lm-eval count as tokens of dense passes; what its tasks let the model write does not count (`not_counted`).

    Args:
        config: of the run.
        loaded: the dense model.
        grid: units and their levels.
        splits: what is calibrated and reported on.
        harness: the tasks of the report and of the finalists.
        tokens_per_second: of dense passes.
    """
    n_rows = 2 + len(config.yardsticks) + len(config.controls)
    n_searched = (1 + len(config.controls)) * config.search.max_tokens
    of_row = splits.report_NT.numel() + harness.n_request_tokens(config.harness.report_tasks, loaded.tokenizer)
    of_finalist = harness.n_request_tokens(config.harness.search_tasks, loaded.tokenizer)
    n_rows_measured = n_rows + len(config.training.rows)
    n_passed: float = n_searched + n_rows_measured * of_row + config.training.n_pass_tokens()
    seconds = (n_passed + config.search.n_finalists * of_finalist) / tokens_per_second
    # the first row is the dense model
    seconds += (n_rows - 1) * pruning_seconds(loaded, splits.calibration_NT, config.method)
    if config.level_kind is LevelKind.BUILT:
        n_candidates = n_searched / (config.search.ladder.rungs[0] * config.data.n_tokens_per_window)
        n_levels_of_unit = sum(levels.n_steps for levels in grid.levels.values()) / len(grid.units)
        seconds += min(SHARE_OF_LEVELS * n_levels_of_unit, n_candidates) * solve_seconds(loaded, config.method)
    return seconds


def not_counted(harness: Harness) -> str:
    """What `run_seconds` leaves out, in words; nothing, mostly.

    Args:
        harness: the tasks of the run.
    """
    names = [name for name, task in harness.tasks.items() if task.OUTPUT_TYPE == "generate_until"]
    return f", besides what {', '.join(names)} let the model write" if names else ""
