"""Forecasts the seconds of a run, when its model is loaded and calibrated."""

from selfprune.allocations.allocation import LevelGrid
from selfprune.configs.config import RunConfig
from selfprune.data.splits import Splits
from selfprune.levels.levels_config import LevelKind
from selfprune.models.loading import LoadedModel
from selfprune.timing.pruning_seconds import pruning_seconds, solve_seconds

SHARE_OF_LEVELS = 0.75
"""Of the levels that there are, what a search of the default length builds."""


def run_seconds(config: RunConfig, loaded: LoadedModel, grid: LevelGrid, splits: Splits, tokens_per_second: float) -> float:
    """Seconds of scoring, of building levels, and of pruning and measuring every row of the report; not of lm-eval.

    Args:
        config: of the run.
        loaded: the dense model.
        grid: units and their levels.
        splits: what is calibrated and reported on.
        tokens_per_second: of dense passes.
    """
    n_rows = 2 + len(config.yardsticks) + len(config.controls)
    n_searched = (1 + len(config.controls)) * config.search.max_tokens
    seconds = (n_searched + n_rows * splits.report_NT.numel()) / tokens_per_second
    # the first row is the dense model
    seconds += (n_rows - 1) * pruning_seconds(loaded, splits.calibration_NT, config.pruner)
    if config.level_kind is LevelKind.BUILT:
        n_candidates = n_searched / (config.search.ladder.rungs[0] * config.data.n_tokens_per_window)
        n_levels_of_unit = sum(grid.n_levels.values()) / len(grid.units)
        seconds += min(SHARE_OF_LEVELS * n_levels_of_unit, n_candidates) * solve_seconds(loaded, config.pruner)
    return seconds
