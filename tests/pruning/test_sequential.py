import pytest
import torch
from calibrated import statistics_of
from in_turn import in_turn

from selfprune.errors import PruningError
from selfprune.models.units import weight_view
from selfprune.pruners.weight_pruner import Scope
from selfprune.pruners.weights.magnitude import Magnitude
from selfprune.pruners.weights.wanda import Wanda
from selfprune.pruning.sequential import prune_in_place

WINDOWS_NT = torch.randint(300, (7, 24), generator=torch.Generator().manual_seed(0))


def levels_of_all_sorts(units):
    return {unit.name: (7, 0, unit.n_items, unit.n_items // 2, unit.n_items // 3)[i % 5] for i, unit in enumerate(units)}


def halves(units):
    return {unit.name: unit.n_items // 2 for unit in units}


def n_hooks(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_experts_that_no_token_reaches_have_zeros_and_prune_exactly(load_tiny):
    loaded = load_tiny("mixtral", num_local_experts=16)
    windows_NT = WINDOWS_NT[:1, :3]  # three tokens with two experts each reach six of sixteen at most
    statistics = statistics_of(loaded, windows_NT, Wanda(), batch_size=1)
    for unit in loaded.units:
        if ".experts." in unit.name:
            n_reached = int(statistics[unit.name].means().any(dim=1).sum())
            assert 1 <= n_reached <= 6
    allocation = halves(loaded.units)
    assert prune_in_place(loaded, windows_NT, Wanda(), allocation, batch_size=1) == allocation
    for unit in loaded.units:
        assert (weight_view(loaded.model, unit) == 0).sum() == allocation[unit.name]


def test_a_transposed_weight_is_pruned_within_its_outputs(load_tiny):
    loaded = load_tiny("gpt2")
    dense = {unit.name: loaded.model.get_submodule(unit.name).weight.clone() for unit in loaded.units}
    first = [unit for unit in loaded.units if unit.block == 0]
    statistics = statistics_of(loaded, WINDOWS_NT, Wanda(), batch_size=4)
    prune_in_place(loaded, WINDOWS_NT, Wanda(), halves(loaded.units), batch_size=4)
    for unit in first:
        weight_IO = loaded.model.get_submodule(unit.name).weight
        score_IO = dense[unit.name].abs() * statistics[unit.name].means().sqrt().T
        n_pruned = weight_IO.shape[0] // 2
        for column in range(weight_IO.shape[1]):
            lowest = set(score_IO[:, column].sort(stable=True).indices[:n_pruned].tolist())
            assert set((weight_IO[:, column] == 0).nonzero().flatten().tolist()) == lowest


@in_turn("pruner", [Wanda(), Wanda(scope=Scope.MATRIX), Magnitude()])
def test_pruning_removes_exactly_what_the_allocation_says(pruner, family, load_tiny):
    if family not in ("llama", "gpt2", "phi3", "mixtral") and pruner != Wanda():
        return
    loaded = load_tiny(family)
    allocation = levels_of_all_sorts(loaded.units)
    dense = {unit.name: weight_view(loaded.model, unit).clone() for unit in loaded.units}
    already = {name: int((weight_OI == 0).sum()) for name, weight_OI in dense.items()}
    assert set(already.values()) == {0}
    assert prune_in_place(loaded, WINDOWS_NT, pruner, allocation, batch_size=3) == allocation
    for unit in loaded.units:
        weight_OI = weight_view(loaded.model, unit)
        assert int((weight_OI == 0).sum()) == allocation[unit.name], unit.name
        assert torch.equal(weight_OI[weight_OI != 0], dense[unit.name][weight_OI != 0])


def test_each_block_is_pruned_on_the_outputs_of_pruned_blocks(family, load_tiny):
    loaded, pruned = load_tiny(family), load_tiny(family)
    allocation = halves(loaded.units)
    prune_in_place(pruned, WINDOWS_NT, Wanda(), allocation, batch_size=4)
    on_dense = statistics_of(loaded, WINDOWS_NT, Wanda(), batch_size=4)
    for unit in loaded.units:
        if unit.block == 0:
            weight_view(loaded.model, unit).copy_(weight_view(pruned.model, unit))
    on_pruned = statistics_of(loaded, WINDOWS_NT, Wanda(), batch_size=4)
    differs = []
    for unit in loaded.units:
        if unit.block == 1:
            kept_OI, otherwise_OI = (
                Wanda().prune(weight_view(loaded.model, unit), statistics[unit.name], allocation[unit.name]).kept
                for statistics in (on_pruned, on_dense)
            )
            assert torch.equal(weight_view(pruned.model, unit) != 0, kept_OI)
            differs.append(not torch.equal(kept_OI, otherwise_OI))
    assert any(differs)


def test_activations_that_are_not_finite_name_the_unit(load_tiny):
    loaded = load_tiny("llama")
    loaded.model.get_input_embeddings().weight[WINDOWS_NT[5, 5]] = torch.nan
    with pytest.raises(PruningError, match=r"^model\.layers\.0\.self_attn\.q_proj: the scores of a unit are not finite"):
        prune_in_place(loaded, WINDOWS_NT, Wanda(), halves(loaded.units), batch_size=4)
    assert n_hooks(loaded.model) == 0


def test_a_count_out_of_range_names_the_unit(load_tiny):
    loaded = load_tiny("llama")
    allocation = halves(loaded.units) | {loaded.units[9].name: 10**6}
    with pytest.raises(PruningError, match=rf"^{loaded.units[9].name}: a unit of \d+ weights cannot lose 1000000"):
        prune_in_place(loaded, WINDOWS_NT, Wanda(), allocation, batch_size=4)
