"""What a pruning without a search will take, when its model is loaded.

Shape suffixes: N sequences, T tokens.
"""

import math

from torch import Tensor

from selfprune.allocations.unit import Unit, n_weights
from selfprune.configs.config import PruneConfig
from selfprune.models.loading import LoadedModel
from selfprune.models.memory_check import LIBRARY_BYTES
from selfprune.models.model_config import Placement
from selfprune.models.units import weight_view
from selfprune.statistics.pair import gathers_gram
from selfprune.timing.pruning_seconds import pruning_seconds
from selfprune.timing.resources import Resources

WRITTEN_BYTES_PER_SECOND = 500e6
"""What an ordinary disk takes."""


def forecast_pruning(config: PruneConfig, loaded: LoadedModel, windows_NT: Tensor, n_stored_bytes: int) -> Resources:
    """Memory and disk from sizes alone, and seconds from a trial of the pruner and of a block on this machine.

    Args:
        config: what to do.
        loaded: the dense model.
        windows_NT: calibration windows.
        n_stored_bytes: what the checkpoint, and the weights that lie on disk meanwhile, take there.
    """
    hidden_bytes = windows_NT.numel() * loaded.model.config.get_text_config().hidden_size * _item_bytes(loaded)
    seconds = pruning_seconds(loaded, windows_NT, config.method) + n_stored_bytes / WRITTEN_BYTES_PER_SECOND
    return Resources(_memory_bytes(config, loaded, hidden_bytes), n_stored_bytes + 2 * hidden_bytes, seconds)


def _memory_bytes(config: PruneConfig, loaded: LoadedModel, hidden_bytes: int) -> int:
    """Weights, hidden states in and out of a block, statistics, copies of one unit."""
    at_hand = sum(p.numel() * p.element_size() for p in loaded.model.parameters() if not p.is_meta)
    block_bytes = max(sum(p.numel() * p.element_size() for p in block.parameters()) for block in loaded.blocks)
    shapes = {unit.kind: _shape(loaded, unit) for unit in loaded.units}
    largest = max(math.prod(shape) for shape in shapes.values())
    is_gram = gathers_gram(config.method.statistics(1, 1, 1))
    # units of one module and width are taken to share their input
    inputs = {(kind.rpartition(".")[0], shape[-1]) for kind, shape in shapes.items()}
    gram_bytes = 2 * sum(4 * width**2 for _, width in inputs) if is_gram else 0
    gradient_bytes = 4 * n_weights(loaded.units) if config.method.needs_gradients else 0
    is_streamed = config.model.placement is Placement.STREAM
    memory: int = at_hand + (2 * block_bytes if is_streamed else block_bytes) + 2 * hidden_bytes + gram_bytes + gradient_bytes
    return memory + largest * 9 + (LIBRARY_BYTES if loaded.device.type == "cpu" else 0)


def _item_bytes(loaded: LoadedModel) -> int:
    parameter: Tensor = next(loaded.model.parameters())
    return parameter.element_size()


def _shape(loaded: LoadedModel, unit: Unit) -> tuple[int, int]:
    n_out, n_in = weight_view(loaded.model, unit).shape
    return n_out, n_in
