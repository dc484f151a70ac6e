"""Prunes a model to one allocation, without a search: one walk over the blocks, each saved as soon as it is pruned."""

import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from selfprune.allocations.budget import Measure
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Allocation, Item, sparsity_of
from selfprune.allocations.winners import fits, read_winner
from selfprune.configs.config import PruneConfig
from selfprune.configs.recorded_config import to_record
from selfprune.data.self_generated import text_writer
from selfprune.data.splits import check_texts, draw_calibration
from selfprune.data.window_start import start_tokens
from selfprune.errors import ConfigError
from selfprune.exports.block_writer import BlockWriter, growing
from selfprune.models.blocks.walk import nll_per_token, windows_per_pass
from selfprune.models.chance import doubt_of_chance
from selfprune.models.fittings import fitted_in_place
from selfprune.models.loading import LoadedModel, load_model, max_positions, preflight_memory
from selfprune.models.model_config import Placement
from selfprune.models.structures import context_costs
from selfprune.models.units import token_share
from selfprune.models.vocabulary import check_windows, n_embedding_rows
from selfprune.pruning.sequential import prune_in_place
from selfprune.runs.forecasts.disk_check import check_disk
from selfprune.runs.forecasts.pruning_forecast import forecast_pruning
from selfprune.runs.showing.display import Display
from selfprune.statistics.coverage import Coverage
from selfprune.storage.disk import folder_bytes
from selfprune.storage.environment import describe_environment
from selfprune.storage.whole_files import write_whole
from selfprune.timing.machine import peak_memory_bytes
from selfprune.timing.resources import Resources
from selfprune.timing.unit_seconds import check_latency_table

ITEM_BY_ITEM = 1e-9
"""A step of levels so small that it is one head or channel."""
N_CHECKED_TOKENS = 4096
"""Calibration tokens, in whole windows, on which the dense model is compared with chance."""


def prune_once(config: PruneConfig, composed: DictConfig) -> Path:
    """Prunes a model and saves it as a Hugging Face checkpoint.

    Broken off and started again with the same config, it goes on at the block where it stopped.

    Args:
        config: what to do.
        composed: the same, as it was composed; recorded beside the result.

    Returns:
        the folder of the checkpoint, with `selfprune.json` that says what was removed where and what it took.

    Raises:
        SelfpruneError: on a user's mistake.
    """
    display, began = Display(), time.monotonic()
    output = Path(config.output).expanduser()
    if config.model.placement is Placement.STREAM and config.method.needs_gradients:
        raise ConfigError(
            f"pruner={config.method.name} needs gradients of the whole model, which model.placement=STREAM "
            "does not hold; choose another pruner or placement"
        )
    if config.model.placement is Placement.STREAM and config.method.adds_biases:
        raise ConfigError(
            "recovery=bias_compensation adds biases to the model, whose blocks model.placement=STREAM reads from disk as they "
            "are; choose recovery=least_squares, or another placement"
        )
    check_texts(config.data, ("calibration",))
    preflight_memory(config.model)
    origin = to_record(composed, without=("output",))
    with growing(output, {"config": origin}) as writer:
        removed, expected, loaded, coverage = _prune(config, writer, display, began)
        writer.finish(loaded)
        measured = Resources(peak_memory_bytes(loaded.device), folder_bytes(writer.partial), time.monotonic() - began)
        record = {
            "config": origin,
            "sparsity": sparsity_of(removed, loaded.units),
            "window_start": loaded.tokenizer.convert_ids_to_tokens(list(_window_start(config, loaded))),
            "removed": removed,
            "expected": expected.as_dict(),
            "measured": measured.as_dict(),
            "calibration": coverage.as_dict(),
            "warnings": display.warnings,
            "environment": describe_environment([]),
        }
        write_whole(writer.partial / "selfprune.json", json.dumps(record, indent=2) + "\n")
        writer.publish()
    display.say(f"Measured: {measured}\nSparsity of the units: {record['sparsity']:.2%}\nModel: {output}")
    return output


def _prune(
    config: PruneConfig, writer: BlockWriter, display: Display, began: float
) -> tuple[dict[str, int], Resources, LoadedModel, Coverage]:
    with display.stage(f"loading {config.model.path}"):
        loaded = load_model(config.model, scratch=writer.scratch).for_items(config.method.items())
        loaded = fitted_in_place(loaded, config.method.adds_biases)
        for doubt in (*loaded.doubts, *check_latency_table(config.budget, loaded)):
            display.warn(doubt)
        windows_NT = _calibration(config, loaded)
    allocation = _allocation(config, loaded)
    with display.stage("comparing the dense model with chance"):
        _warn_of_chance(display, loaded, windows_NT)
    checkpoint = writer.checkpoint(loaded)
    for paragraph in checkpoint.left_out:
        display.warn(paragraph)
    n_stored_bytes = checkpoint.n_bytes + folder_bytes(writer.scratch)
    seconds = time.monotonic() - began
    with display.stage("timing the pruner"):
        expected = forecast_pruning(config, loaded, windows_NT, n_stored_bytes)
    expected = replace(expected, seconds=seconds + expected.seconds)
    check_disk(expected.disk_bytes - folder_bytes(writer.partial), writer.partial.parent, "the pruned model", "output")
    display.say(f"Expected: {expected}")
    coverage = Coverage(loaded)
    with display.stage("pruning", total=len(loaded.blocks)) as update:
        n_at_once = windows_per_pass(windows_NT.shape[1])
        removed = prune_in_place(loaded, windows_NT, config.method, allocation, n_at_once, writer, update, coverage=coverage)
    if not config.method.sees_weights_alone():
        coverage.warn(display.warn, "calibration")
    return removed, expected, loaded, coverage


def _calibration(config: PruneConfig, loaded: LoadedModel) -> Tensor:
    generate = text_writer(loaded.model, loaded.tokenizer, config.data)
    windows_NT = draw_calibration(config.data, loaded.tokenizer, config.seed, generate, max_positions(loaded.model))
    check_windows(windows_NT, loaded.tokenizer, n_embedding_rows(loaded.model), "calibration")
    return windows_NT


def _warn_of_chance(display: Display, loaded: LoadedModel, windows_NT: Tensor) -> None:
    """Warns before anything is pruned; one walk of few tokens, whose time the forecast counts in, whatever the placement."""
    few_NT = windows_NT[: max(1, N_CHECKED_TOKENS // windows_NT.shape[1])]
    nll = nll_per_token(loaded, few_NT, windows_per_pass(few_NT.shape[1]))
    if doubt := doubt_of_chance(nll, few_NT, loaded.model.config.get_text_config().vocab_size, "calibration"):
        display.warn(doubt)


def _window_start(config: PruneConfig, loaded: LoadedModel) -> tuple[int, ...]:
    return start_tokens(loaded.tokenizer, config.data.bos, config.data.n_tokens_per_window)


def _allocation(config: PruneConfig, loaded: LoadedModel) -> Allocation:
    """Unit name -> items to remove.

    Raises:
        ConfigError: when the run folder has no winner, or the allocation does not fit this model or the pattern.
    """
    if config.allocation == "uniform":
        return _uniform(config, loaded)
    allocation = read_winner(Path(config.allocation).expanduser(), "allocation must be uniform or the folder of a finished run")
    if not fits(allocation, loaded.units):
        raise ConfigError(f"the winner of {config.allocation} belongs to another model; give a run of {config.model.path}")
    return allocation


def _uniform(config: PruneConfig, loaded: LoadedModel) -> Allocation:
    fraction, budget = config.method.level_fraction(), config.budget
    costs = context_costs(loaded.model, budget.context)
    sparsity = budget.uniform_sparsity(loaded.units, loaded.n_parameters, costs)
    if Item.WEIGHT not in config.method.items():
        # a head is too much of a unit for rounding to meet the budget
        grid = config.method.grid(loaded.units, ITEM_BY_ITEM)
        target = Target.of(budget, grid, loaded.n_parameters, partial(token_share, loaded.model), costs)
        return target.project({unit.name: sparsity for unit in loaded.units})
    if fraction is None:
        return budget.uniform(loaded.units, loaded.n_parameters)
    # of another measure than weights, a pattern can hardly save the very share that was asked for, but it may save more
    is_met = math.isclose(fraction, sparsity) or (budget.measure is not Measure.WEIGHTS and fraction > sparsity)
    if not is_met:
        asked = f"budget.sparsity is {budget.sparsity:g}"
        if budget.measure is not Measure.WEIGHTS:
            asked += f" by budget.measure={budget.measure.name}, which takes {sparsity:g} of every unit"
        raise ConfigError(
            f"{config.method.level_option()} removes {fraction:g} of every unit, but {asked}; give "
            f"budget.sparsity={fraction:g} or another pattern"
        )
    return {unit.name: round(fraction * unit.n_items) for unit in loaded.units}
