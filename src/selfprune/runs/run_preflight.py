"""Whether a run fits into memory and onto the disk: told before it begins."""

from functools import partial
from pathlib import Path
from typing import Any

from selfprune.configs.config import RunConfig
from selfprune.data.splits import check_texts
from selfprune.errors import ConfigError, ModelError, SelfpruneError
from selfprune.evaluators.task_memory import logit_bytes
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import LOGIT_BYTES
from selfprune.levels.level_store import number_dtype
from selfprune.levels.levels_config import LevelKind
from selfprune.models.block_walk import windows_per_pass
from selfprune.models.loading import LoadedModel, max_positions, preflight_memory
from selfprune.models.model_config import Placement
from selfprune.models.preflight import free_memory_bytes
from selfprune.models.units import list_units, n_parameters, n_row_groups, weight_view
from selfprune.reports.resources import LIBRARY_BYTES, Resources
from selfprune.runs.display import Display
from selfprune.storage.disk import free_bytes

HARNESS_BYTES = 300_000_000
"""Main memory of lm-eval and the libraries of data that a run adds to those of any command."""
GRADIENT_BYTES = 4
"""Memory per weight while a pruner gathers gradients."""


def preflight(config: RunConfig, folder: Path) -> Resources:
    """Refuses what cannot fit into memory or onto the disk, before any weight is read or anything written.

    Returns:
        what the run needs; the seconds are not known before the model runs.

    Raises:
        ConfigError: when the model would stay on disk, where a search cannot change it.
        DataError: when a text is missing or out of reach.
        LanguageModelError: when the language model of a new run cannot serve, though a search will ask it.
        ModelError: when the model does not fit into memory.
        SelfpruneError: when the results do not fit onto the disk.
    """
    if config.model.placement is Placement.STREAM:
        raise ConfigError(
            "a search needs the whole model at hand, but model.placement=STREAM leaves it on disk; choose WHOLE or SPREAD, or "
            "prune it without a search: python -m selfprune.prune"
        )
    check_texts(config.data)
    estimate = preflight_memory(config.model, partial(_held_bytes, config))
    needed, free = estimate.n_parameters * estimate.bytes_per_weight + 50_000_000, free_bytes(folder)
    if needed > free:
        raise SelfpruneError(
            f"the run would write about {needed / 1e9:.2f} GB into {folder}, but the disk has {free / 1e9:.2f} GB free; "
            f"free some space or choose another run_folder"
        )
    asks = any(proposer.asks_language_model for proposer in (config.proposer, *config.controls.values()))
    # A run that was begun may hold all the replies that it needs.
    if asks and not (folder / "language_model_calls.jsonl").exists():
        config.language_model.check()
    needs = (
        f"{estimate.n_parameters:,} parameters; the run needs about {estimate.needed_bytes / 1e9:.2f} GB of memory and "
        f"{needed / 1e9:.2f} GB of disk"
    )
    in_memory, on_disk = 0, 0
    if config.level_kind is LevelKind.BUILT:
        in_memory, on_disk = _bytes_of_levels(config, estimate.skeleton, estimate.bytes_per_weight)
        needs += f"; built levels may take {in_memory / 1e9:.2f} and {on_disk / 1e9:.2f} GB more (search.levels)"
    Display().say(needs)
    # what is measured on a GPU is the GPU's memory, and levels lie in main memory
    main_bytes = LIBRARY_BYTES + HARNESS_BYTES + in_memory if config.model.torch_device().type == "cpu" else 0
    # nor does the run count what it leaves in a folder that was given
    return Resources(estimate.needed_bytes + main_bytes, needed + (0 if config.search.levels.folder else on_disk), 0.0)


def _bytes_of_levels(config: RunConfig, skeleton: Any, bytes_per_weight: int) -> tuple[int, int]:
    """Main memory and disk that built levels and their statistics may take: the bounds, or all of them where that is less."""
    units, levels = list_units(skeleton), config.search.levels
    n_levels = config.grid(units).n_levels
    of_levels = sum(n_levels[unit.name] * unit.n_weights * bytes_per_weight for unit in units)
    # no statistics are larger than the Gram matrices of the inputs, which several units may share
    of_statistics = sum(4 * n_row_groups(skeleton, unit) * weight_view(skeleton, unit).shape[1] ** 2 for unit in units)
    in_memory = min(int(levels.memory_gb * 1e9), of_levels) + min(int(levels.statistics_gb * 1e9), of_statistics)
    return in_memory, min(int(levels.cache_gb * 1e9), of_levels + of_statistics)


def check_generation(config: RunConfig, loaded: LoadedModel, cache_bytes: int) -> int:
    """Refuses lm-eval tasks that let the model write where keys and values do not fit beside what the run holds.

    Args:
        config: of the run.
        loaded: its model, with its weights in memory.
        cache_bytes: of the keys and values.

    Returns:
        the bytes by which they raise the peak that `preflight` expects.

    Raises:
        ModelError: when they do not fit.
    """
    sizes = n_parameters(loaded.model), loaded.model.dtype.itemsize
    without, needed = (_held_bytes(config, loaded.model, *sizes, each) for each in (0, cache_bytes))
    free = free_memory_bytes(loaded.device)
    if needed > without and free is not None and needed > free:
        raise ModelError(
            f"the tasks of harness.tasks and harness.search_tasks that let the model write take {cache_bytes / 1e9:.2f} GB for "
            f"the keys and values of {config.harness.batch_size} requests at once, and with all else that the run holds besides "
            f"the weights {needed / 1e9:.2f} GB, but {loaded.device} has {free / 1e9:.2f} GB free; give a lower "
            "harness.batch_size, or leave these tasks out"
        )
    return needed - without


def _held_bytes(config: RunConfig, skeleton: Any, n_parameters: int, bytes_per_weight: int, cache_bytes: int = 0) -> int:
    """Memory of a run besides the weights, built levels apart.

    A copy of the weights and, for masks, the level at which each goes; what is kept of the texts; the logits of a batch, of
    windows or of lm-eval's requests, or the keys and values of those that are written; the hidden states of the calibration
    windows before and after a block; and those of the search windows before every block, as far as they may be kept.
    """
    per_parameter = bytes_per_weight + (GRADIENT_BYTES if config.pruner.needs_gradients else 0)
    text_config = skeleton.config.get_text_config()
    data, search, n_vocabulary = config.data, config.search, text_config.vocab_size
    kept = [(config.evaluator, data.n_search), (KLDivergence(), data.n_report)]
    per_position = sum(metric.kept_bytes(n_vocabulary) * n_windows for metric, n_windows in kept)
    hidden_bytes = text_config.hidden_size * bytes_per_weight
    per_position += 2 * data.n_calibration * hidden_bytes
    prefix_bytes = config.n_search_windows * data.n_tokens_per_window * text_config.num_hidden_layers * hidden_bytes
    needed: int = n_parameters * per_parameter + data.n_tokens_per_window * per_position
    # gradients are taken in passes of their own size
    n_at_once = max(search.batch_size, windows_per_pass(data.n_tokens_per_window))
    of_windows = data.n_tokens_per_window * n_at_once * n_vocabulary * (bytes_per_weight + LOGIT_BYTES)
    of_requests = 0
    if config.harness.tasks or config.harness.search_tasks:
        of_requests = logit_bytes(config.harness.batch_size, n_vocabulary, max_positions(skeleton), bytes_per_weight)
    needed += max(of_windows, of_requests, cache_bytes)
    # under SPREAD they lie beside the weights, of which nobody knows where either
    if config.level_kind is LevelKind.MASKS and config.model.placement is not Placement.SPREAD:
        units = list_units(skeleton)
        n_levels = config.grid(units).n_levels
        needed += sum(unit.n_weights * number_dtype(n_levels[unit.name]).itemsize for unit in units)
    needed += min(prefix_bytes, search.prefix_cache_mb * 10**6)
    return needed
