import pytest
import torch
from calibrated import statistics_of

from selfprune.allocations.level_grid import LevelGrid
from selfprune.errors import AllocationError, PruningError
from selfprune.levels.mask_levels import MaskLevels
from selfprune.models.model_config import DType
from selfprune.models.units import weight_view
from selfprune.pruners.weight_pruner import Scope
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.pruners.weights.wanda import Wanda
from selfprune.pruning.sequential import prune_in_place

WINDOWS_NT = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))


def build(loaded, pruner, fraction=0.01, max_sparsity=1.0):
    statistics = statistics_of(loaded, WINDOWS_NT, pruner, batch_size=4)
    grid = LevelGrid.with_constant_step(loaded.units, fraction, max_sparsity)
    store = MaskLevels(loaded, grid, pruner)
    store.take(grid.units, statistics)
    return store, statistics


def weights(store):
    return {unit.name: weight_view(store.loaded.model, unit).clone() for unit in store.grid.units}


def at_fraction(store, fraction):
    return {name: levels.items[levels.index(int(fraction * levels.n_items))] for name, levels in store.grid.levels.items()}


def test_every_level_is_what_the_pruner_gives(family, load_tiny):
    pruners = [Wanda(), Wanda(scope=Scope.MATRIX), Wanda(pattern="2:4"), Magnitude()]
    for pruner in pruners if family in ("llama", "gpt2", "mixtral") else pruners[:1]:
        store, statistics = build(load_tiny(family), pruner)
        dense = weights(store)
        for fraction in (0.5, 0, 0.123, 1, 0.9):
            allocation = at_fraction(store, fraction)
            store.load(allocation)
            for name, weight_OI in weights(store).items():
                mask_OI = pruner.prune(dense[name], statistics[name], allocation[name]).kept
                assert torch.equal(weight_OI, torch.where(mask_OI, dense[name], 0)), (pruner, name)
                assert int((weight_OI == 0).sum()) == allocation[name], (pruner, name)


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_counts_are_exact_in_short_dtypes_where_scores_tie(dtype, load_tiny):
    store, _ = build(load_tiny("llama", dtype), Magnitude())
    dense = weights(store)
    assert any(len(weight_OI.abs().unique()) < weight_OI.numel() for weight_OI in dense.values())
    store.load(at_fraction(store, 0.37))
    for name, weight_OI in weights(store).items():
        n_zeros = int((weight_OI == 0).sum()) - int((dense[name] == 0).sum())
        assert weight_OI.dtype is getattr(torch, dtype.value)
        assert n_zeros == store.allocation[name]


def test_levels_are_nested(load_tiny):
    store, _ = build(load_tiny("gpt2"), Wanda())
    removed = {name: torch.zeros_like(weight_OI, dtype=torch.bool) for name, weight_OI in weights(store).items()}
    for fraction in (0.1, 0.4, 0.41, 0.8):
        store.load(at_fraction(store, fraction))
        for name, weight_OI in weights(store).items():
            assert ((weight_OI == 0) | ~removed[name]).all()
            removed[name] = weight_OI == 0


def test_only_units_whose_level_changed_are_touched(family, load_tiny):
    store, _ = build(load_tiny(family), Magnitude())
    allocation = at_fraction(store, 0.5)
    names = [unit.name for unit in store.grid.units]
    assert store.load(allocation) == names
    assert store.load(allocation) == []
    changed = [names[1], names[-1]]
    marks = {unit.name: weight_view(store.loaded.model, unit) for unit in store.grid.units}
    for mark_OI in marks.values():
        mark_OI.fill_(1234.0)
    others = allocation | {name: 3 * store.grid.levels[name].items[1] for name in changed}
    assert store.load(others) == changed
    assert store.allocation == others
    for name, weight_OI in marks.items():
        assert bool((weight_OI == 1234.0).all()) is (name not in changed)


def test_an_allocation_that_is_changed_later_does_not_change_the_store(load_tiny):
    store, _ = build(load_tiny("llama"), Magnitude())
    allocation = at_fraction(store, 0.5)
    store.load(allocation)
    name = store.grid.units[0].name
    allocation[name] = 0
    assert store.load(allocation) == [name]


def test_restoring_after_a_real_pruning_gives_the_dense_weights_bit_by_bit(family, load_tiny):
    store, _ = build(load_tiny(family), Wanda())
    before = {name: tensor.clone() for name, tensor in store.loaded.model.state_dict().items()}
    dense_NTV = store.loaded.model(input_ids=WINDOWS_NT).logits
    store.load(at_fraction(store, 0.3))
    prune_in_place(store.loaded, WINDOWS_NT, Wanda(), at_fraction(store, 0.6), batch_size=4)
    assert not torch.equal(store.loaded.model(input_ids=WINDOWS_NT).logits, dense_NTV)
    store.restore()
    assert all(torch.equal(tensor, before[name]) for name, tensor in store.loaded.model.state_dict().items())
    assert torch.equal(store.loaded.model(input_ids=WINDOWS_NT).logits, dense_NTV)
    assert set(store.allocation.values()) == {0}


@pytest.mark.parametrize(("fraction", "dtype"), [(0.05, torch.uint8), (0.002, torch.int16)])
def test_a_weight_keeps_the_number_of_its_level_in_as_few_bytes_as_the_levels_need(fraction, dtype, load_tiny):
    store, statistics = build(load_tiny("llama"), Wanda(), fraction=fraction, max_sparsity=0.8)
    unit = next(unit for unit in store.grid.units if unit.kind == "mlp.up_proj")
    number_OI = store._first_levels[unit.name]
    n_levels, step = store.grid.levels[unit.name].n_steps, store.grid.levels[unit.name].items[1]
    assert number_OI.dtype is dtype
    assert number_OI.min() == 1
    assert number_OI.max() == n_levels + 1
    ranks_OI = Wanda().ranks(store.dense(unit.name), statistics[unit.name])
    for level in range(0, n_levels * step + 1, step):
        assert torch.equal(store.weight_at(unit, level) != 0, ranks_OI >= level)
    for level in {-step, 1, step + 1, (n_levels + 1) * step} - {step, 2 * step}:
        with pytest.raises(AllocationError, match=rf"^{unit.name} has {n_levels + 1} levels .*, and none at {level:,},"):
            store.weight_at(unit, level)


def test_weights_that_are_not_finite_name_the_unit(load_tiny):
    loaded = load_tiny("llama")
    statistics = statistics_of(loaded, WINDOWS_NT, Magnitude(), batch_size=4)
    weight_view(loaded.model, loaded.units[4])[2, 2] = torch.inf
    grid = LevelGrid.with_constant_step(loaded.units, fraction_of_smallest=0.1)
    with pytest.raises(PruningError, match=rf"^{loaded.units[4].name}: the scores of a unit are not finite"):
        MaskLevels(loaded, grid, Magnitude()).take(grid.units, statistics)


def test_a_change_along_a_gradient_counts_the_weights_that_return_and_no_others(load_tiny):
    store, _ = build(load_tiny("llama"), Wanda())
    allocation, denser = at_fraction(store, 0.6), at_fraction(store, 0.4)
    store.load(allocation)
    generator = torch.Generator().manual_seed(0)
    for unit in store.grid.units:
        gradient_OI = torch.randn(store.dense(unit.name).shape, generator=generator)
        change_OI = store.weight_at(unit, denser[unit.name]) - store.weight_at(unit, allocation[unit.name])
        found = store.first_order_change(gradient_OI, unit, denser[unit.name])
        assert found == pytest.approx(float((gradient_OI * change_OI).sum()), rel=1e-4, abs=1e-5)
