"""Heads and channels in both level stores, in the walk that prunes for good, and along gradients."""

import pytest
import torch
from calibrated import fill

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Item
from selfprune.levels.built_levels import BuiltLevels, open_statistics
from selfprune.levels.levels_config import LevelKind, LevelsConfig
from selfprune.levels.mask_levels import MaskLevels
from selfprune.models.blocks.gradients import backward_blocks
from selfprune.models.units import by_item, weight_view
from selfprune.pruners.structures.wanda_sp import WandaSP
from selfprune.pruning.sequential import prune_in_place

WINDOWS_NT = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
FAMILIES = ["llama", "gpt2", "opt", "phi3"]


@pytest.fixture(params=FAMILIES)
def loaded(request, load_tiny):
    return load_tiny(request.param).for_items(WandaSP().items())


def built(loaded, grid, folder):
    statistics = open_statistics(loaded, grid, WandaSP(), WINDOWS_NT, 4, LevelsConfig(LevelKind.BUILT), folder)
    return BuiltLevels(loaded, grid, WandaSP(), statistics, 10**9)


def halves(units):
    return {unit.name: unit.n_items // 2 for unit in units}


def zero_items(loaded, unit):
    """Items of which the reader sees nothing."""
    return int((~by_item(unit, weight_view(loaded.model, unit)).any(dim=2).any(dim=0)).sum())


def test_both_stores_and_a_pruning_of_the_first_block_take_the_same_items_of_the_readers_alone(loaded, tmp_path):
    grid, readers = LevelGrid.of_structures(loaded.units, 0.01), {f"{unit.reader}.weight" for unit in loaded.units}
    dense = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    found = []
    for store in (MaskLevels(loaded, grid, WandaSP()), built(loaded, grid, tmp_path)):
        fill(store, WINDOWS_NT, WandaSP(), 4)
        store.load(halves(grid.units))
        found.append({name: tensor.clone() for name, tensor in loaded.model.state_dict().items()})
        assert [zero_items(loaded, unit) for unit in loaded.units] == [unit.n_items // 2 for unit in loaded.units]
        store.restore()
        assert all(torch.equal(tensor, dense[name]) for name, tensor in loaded.model.state_dict().items())
    assert {name for name in dense if not torch.equal(found[0][name], dense[name])} == readers
    assert all(torch.equal(found[0][name], found[1][name]) for name in dense)
    assert prune_in_place(loaded, WINDOWS_NT, WandaSP(), halves(loaded.units), 4) == halves(loaded.units)
    first = f"{loaded.units[0].reader}.weight"
    assert torch.equal(loaded.model.state_dict()[first], found[0][first])
    assert [zero_items(loaded, unit) for unit in loaded.units] == [unit.n_items // 2 for unit in loaded.units]


def test_the_first_order_value_of_an_item_that_returns_is_that_of_the_loss(loaded):
    """The readers' columns are masked and not the writers' rows, else the gradient of what went would be zero."""
    grid = LevelGrid.of_structures(loaded.units, 0.01)
    store = fill(MaskLevels(loaded, grid, WandaSP()), WINDOWS_NT, WandaSP(), 4)
    store.load(halves(grid.units))
    unit = grid.units[1]
    level, levels = store.allocation[unit.name], grid.levels[unit.name]
    denser, values, losses = levels.moved(level, -3), [], []

    def add(of, gradient_OI):
        if of.name == unit.name:
            values.append(store.first_order_change(gradient_OI, unit, denser))

    def loss(logits_NTV):
        return torch.nn.functional.cross_entropy(logits_NTV[:, :-1].flatten(0, 1), WINDOWS_NT[:, 1:].flatten())

    loaded.model.double()
    for part in (0.0, 1e-3):
        weight_OI = weight_view(loaded.model, unit)
        weight_OI.copy_(torch.lerp(store.weight_at(unit, level).double(), store.weight_at(unit, denser).double(), part))
        losses.append(float(loss(loaded.model(input_ids=WINDOWS_NT).logits)))
        if not part:
            backward_blocks(loaded, WINDOWS_NT, add, lambda _, logits_NTV: loss(logits_NTV))
    assert values[0] != 0
    assert values[0] * 1e-3 == pytest.approx(losses[1] - losses[0], rel=0.05)


def test_levels_of_structures_keep_multiples_and_end_with_the_sublayer(load_tiny):
    units = load_tiny("llama").for_items({Item.HEAD_GROUP, Item.CHANNEL}).units  # 2 groups of heads and 48 channels
    heads, channels, *_ = LevelGrid.of_structures(units, 0.2).levels.values()
    assert heads.items == (0, 1, 2)
    assert channels.items == (0, *range(6, 48, 6), 48)
    assert channels.saved == tuple(96 * level for level in channels.items)
    assert LevelGrid.of_structures(units, 0.2, multiple=32).levels[units[1].name].items == (0, 16, 48)
    assert LevelGrid.of_structures(units, 0.2, 0.5).levels[units[1].name].items == (0, 6, 12, 18, 24)
    assert {levels.n_steps for levels in LevelGrid.of_structures(units, 0.2, whole=True).levels.values()} == {1}
