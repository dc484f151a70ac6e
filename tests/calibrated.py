"""What tests take from the walk that calibrates, for all blocks at once."""

from selfprune.levels.mask_levels import MaskLevels
from selfprune.pruning.calibration import calibrate_blocks


def statistics_of(loaded, windows_NT, pruner, batch_size):
    """Unit name -> the pruner's statistics."""
    of_blocks = calibrate_blocks(loaded, windows_NT, pruner, batch_size)
    return {name: gathered for _, statistics in of_blocks for name, gathered in statistics.items()}


def fill(store, windows_NT, pruner, batch_size):
    """Hands the statistics of every block to a level store, and gives it back."""
    for units, statistics in calibrate_blocks(store.loaded, windows_NT, pruner, batch_size):
        store.take(units, statistics)
    return store


def mask_levels(loaded, grid, windows_NT, pruner, batch_size):
    """A level store of masks."""
    return fill(MaskLevels(loaded, grid, pruner), windows_NT, pruner, batch_size)
