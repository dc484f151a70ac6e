"""What a run holds in memory besides the weights of its model."""

from typing import Any

from selfprune.configs.config import RunConfig
from selfprune.errors import ModelError
from selfprune.evaluators.task_memory import logit_bytes
from selfprune.evaluators.window_metrics.kl_divergence import KLDivergence
from selfprune.evaluators.windows import LOGIT_BYTES
from selfprune.levels.dense_weights import DenseWeights, StoredDenseWeights
from selfprune.levels.levels_config import LevelKind
from selfprune.levels.mask_levels import number_dtype
from selfprune.models.blocks.calls import sequences_at_once
from selfprune.models.blocks.walk import windows_per_pass
from selfprune.models.loading import LoadedModel, max_positions
from selfprune.models.memory_check import free_memory_bytes
from selfprune.models.model_config import Placement
from selfprune.models.structures import list_items
from selfprune.models.units import n_parameters, n_row_groups, weight_view
from selfprune.search.search_config import Memory

GRADIENT_BYTES = 4
"""Memory per weight while a pruner gathers gradients."""


def held_bytes(config: RunConfig, skeleton: Any, n_parameters: int, bytes_per_weight: int, cache_bytes: int = 0) -> int:
    """Memory of a run besides the weights, built levels apart, with `search.memory` as `chosen_memory` has it.

    Args:
        config: of the run.
        skeleton: its model, with its weights or without.
        n_parameters: that are held at once.
        bytes_per_weight: of one weight.
        cache_bytes: of the keys and values of tasks that let the model write.
    """
    memory = chosen_memory(config, skeleton, n_parameters, bytes_per_weight)
    return _held_bytes(config, skeleton, n_parameters, bytes_per_weight, cache_bytes, memory)


def chosen_memory(config: RunConfig, skeleton: Any, n_parameters: int, bytes_per_weight: int) -> Memory:
    """What `search.memory` is: AUTO is LEAN where all that a run holds would not fit otherwise, tasks that write left out."""
    if config.search.memory is not Memory.AUTO:
        return config.search.memory
    free = free_memory_bytes(config.model.torch_device())
    needed = _held_bytes(config, skeleton, n_parameters, bytes_per_weight, 0, Memory.WHOLE)
    if next(iter(skeleton.parameters())).is_meta:
        needed += n_parameters * bytes_per_weight
    return Memory.WHOLE if free is None or needed <= free else Memory.LEAN


def _held_bytes(
    config: RunConfig, skeleton: Any, n_parameters: int, bytes_per_weight: int, cache_bytes: int, memory: Memory
) -> int:
    """Memory of a run besides the weights, built levels apart, as one kind of `search.memory` has it.

    Unless that is LEAN and the checkpoint holds them in the same format, a copy of the weights; for masks, the level at which
    each goes; what is kept of the texts; the logits of some windows or of lm-eval's requests, or the keys and values of those
    that are written; the hidden states of the calibration windows before and after a block; those of the search windows before
    every block, as far as they may be kept; what every process of `search.workers` has of its own; and the model that is
    trained.
    """
    text_config = skeleton.config.get_text_config()
    is_copied = memory is Memory.WHOLE or getattr(text_config.dtype, "itemsize", bytes_per_weight) != bytes_per_weight
    per_parameter = (bytes_per_weight if is_copied else 0) + (GRADIENT_BYTES if config.method.needs_gradients else 0)
    data, search, n_vocabulary = config.data, config.search, text_config.vocab_size
    kept = [(config.evaluator, data.n_search), (KLDivergence(), data.n_report)]
    per_position = sum(metric.kept_bytes(n_vocabulary) * n_windows for metric, n_windows in kept)
    hidden_bytes = text_config.hidden_size * bytes_per_weight
    per_position += 2 * data.n_calibration * hidden_bytes
    prefix_bytes = config.n_search_windows * data.n_tokens_per_window * text_config.num_hidden_layers * hidden_bytes
    needed: int = n_parameters * per_parameter + data.n_tokens_per_window * per_position
    # gradients are taken in passes of their own size
    n_tokens = data.n_tokens_per_window
    n_at_once = max(search.batch_size, windows_per_pass(n_tokens))
    n_together = min(n_at_once, sequences_at_once(n_tokens, n_vocabulary))
    of_windows = n_tokens * n_together * n_vocabulary * (bytes_per_weight + LOGIT_BYTES)
    of_requests = 0
    if config.harness.report_tasks or config.harness.search_tasks:
        of_requests = logit_bytes(config.harness.batch_size, n_vocabulary, max_positions(skeleton), bytes_per_weight)
    needed += max(of_windows, of_requests, cache_bytes)
    # under SPREAD they lie beside the weights, on devices that the loading chooses
    if config.level_kind is LevelKind.MASKS and config.model.placement is not Placement.SPREAD:
        units = list_items(skeleton, config.method.items())
        levels = config.grid(units).levels
        if memory is Memory.WHOLE or config.model.torch_device().type == "cpu":
            needed += sum(unit.n_items * number_dtype(levels[unit.name].n_steps).itemsize for unit in units)
    of_prefixes: int = min(prefix_bytes, search.prefix_cache_mb * 10**6)
    needed += of_prefixes
    # every process has pruned weights, logits and hidden states of its own, and shares all else
    needed += config.training.held_bytes(n_parameters) + config.schedule.held_bytes(n_parameters)
    n_more = search.workers if search.workers > 1 else 0
    needed += n_more * (n_parameters * bytes_per_weight + of_windows + of_prefixes)
    return needed


def open_dense(config: RunConfig, loaded: LoadedModel) -> DenseWeights:
    """What keeps the dense weights while a search changes those of the model."""
    memory = chosen_memory(config, loaded.model, loaded.n_parameters, loaded.model.dtype.itemsize)
    return StoredDenseWeights(loaded.source) if memory is Memory.LEAN and loaded.source else DenseWeights()


def level_bytes(config: RunConfig, skeleton: Any, bytes_per_weight: int) -> tuple[int, int]:
    """Main memory and disk that built levels and their statistics may take: the bounds, or all of them where that is less.

    Args:
        config: of the run.
        skeleton: its model, with its weights or without.
        bytes_per_weight: of one weight.
    """
    if config.level_kind is LevelKind.MASKS:
        return 0, 0
    units, levels = list_items(skeleton, config.method.items()), config.search.levels
    grid = config.grid(units)
    n_weights = {unit.name: weight_view(skeleton, unit).numel() for unit in units}
    of_levels = sum(grid.levels[unit.name].n_steps * n_weights[unit.name] * bytes_per_weight for unit in units)
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
        the bytes by which they raise the peak that `forecast_run` expects.

    Raises:
        ModelError: when they do not fit.
    """
    sizes = n_parameters(loaded.model), loaded.model.dtype.itemsize
    without, needed = (held_bytes(config, loaded.model, *sizes, each) for each in (0, cache_bytes))
    free = free_memory_bytes(loaded.device)
    if needed > without and free is not None and needed > free:
        raise ModelError(
            f"the tasks of harness.tasks and harness.search_tasks that let the model write take {cache_bytes / 1e9:.2f} GB for "
            f"the keys and values of {config.harness.batch_size} requests at once, and with all else that the run holds besides "
            f"the weights {needed / 1e9:.2f} GB, but {loaded.device} has {free / 1e9:.2f} GB free; give a lower "
            "harness.batch_size, or leave these tasks out"
        )
    return needed - without
