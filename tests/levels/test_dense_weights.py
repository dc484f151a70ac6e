"""Dense weights that are read from the checkpoint while a search changes the model's."""

import os

import pytest
import torch
from calibrated import statistics_of

from selfprune.allocations.level_grid import LevelGrid
from selfprune.errors import ModelError
from selfprune.levels.dense_weights import StoredDenseWeights
from selfprune.levels.mask_levels import HalfBytes, MaskLevels
from selfprune.models.model_config import DType
from selfprune.models.units import weight_view
from selfprune.pruners.weights.wanda import Wanda

WINDOWS_NT = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))


def stores(loaded, fraction):
    """One that copies, and one that reads."""
    statistics = statistics_of(loaded, WINDOWS_NT, Wanda(), batch_size=4)
    grid = LevelGrid.with_constant_step(loaded.units, fraction)
    made = []
    for dense in (None, StoredDenseWeights(loaded.source)):
        store = MaskLevels(loaded, grid, Wanda(), dense)
        store.take(grid.units, statistics)
        made.append(store)
    return made


@pytest.mark.parametrize("fraction", [0.1, 0.01], ids=["half bytes", "bytes"])
def test_every_level_is_that_of_copies_bit_by_bit(family, fraction, load_tiny):
    loaded = load_tiny(family)
    whole, lean = stores(loaded, fraction)
    for unit in whole.grid.units:
        assert torch.equal(lean.dense(unit.name), weight_view(loaded.model, unit))
        levels = whole.grid.levels[unit.name]
        for level in (levels.items[0], levels.items[len(levels.items) // 2], levels.items[-1]):
            assert torch.equal(lean.weight_at(unit, level), whole.weight_at(unit, level))
        gradient_OI = torch.randn_like(weight_view(loaded.model, unit))
        whole.allocation[unit.name] = lean.allocation[unit.name] = levels.items[-1]
        assert lean.first_order_change(gradient_OI, unit, 0) == whole.first_order_change(gradient_OI, unit, 0)
    lean.load({name: levels.items[-2] for name, levels in lean.grid.levels.items()})
    lean.restore()
    assert all(torch.equal(whole.dense(unit.name), weight_view(loaded.model, unit)) for unit in whole.grid.units)


def test_nothing_is_copied_that_the_checkpoint_holds(load_tiny):
    _, lean = stores(load_tiny("llama"), 0.1)
    assert lean._dense._held == {}


def test_what_the_checkpoint_holds_in_another_format_is_copied(load_tiny):
    loaded = load_tiny("llama", DType.BFLOAT16)
    _, lean = stores(loaded, 0.1)
    assert lean._dense._held.keys() == {unit.name for unit in loaded.units}


def test_a_checkpoint_that_changes_is_told(load_tiny):
    loaded = load_tiny("llama")
    _, lean = stores(loaded, 0.1)
    path = loaded.source / "model.safetensors"
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        with pytest.raises(ModelError, match=r"model.safetensors was changed while a search read the dense weights from it"):
            lean.dense(loaded.units[0].name)
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (1, 1)])
def test_half_bytes_give_their_numbers_back(shape):
    numbers = torch.randint(16, shape, dtype=torch.uint8)
    packed = HalfBytes.of(numbers)
    assert packed.pairs.numel() == (numbers.numel() + 1) // 2
    assert torch.equal(packed.numbers(), numbers)
