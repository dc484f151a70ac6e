"""Heads and channels of every family that has an entry.

Shape suffixes: N sequences, T tokens.
"""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from selfprune.allocations.unit import Item
from selfprune.errors import ModelError
from selfprune.models.families import EXPERTS, FAMILIES
from selfprune.models.structures import list_items, list_structures
from selfprune.models.units import by_item, list_units, spread, weight_view

TOKENS_NT = torch.randint(300, (2, 12), generator=torch.Generator().manual_seed(0))
OWN = {"granite": {"tie_word_embeddings": False}, "smollm3": {"layer_types": ["full_attention"] * 2}}


# Experts have tests of their own, in tests/exports/test_experts.py.
@pytest.fixture(params=[family for family in FAMILIES if family not in EXPERTS])
def model(request, make_tiny_model):
    return make_tiny_model(request.param, **OWN.get(request.param, {}))


def test_the_items_of_all_units_are_the_matrices_of_the_blocks_and_the_biases_of_their_writers(model):
    structures, parameters = list_structures(model), dict(model.named_parameters())
    readers = {structure.unit.reader for structure in structures}
    in_blocks = [parameters[f"{unit.name}.weight"] for unit in list_units(model)]
    biases = [parameters.get(f"{unit.name}.bias") for unit in list_units(model) if unit.name not in readers]
    expected = sum(p.numel() for p in [*in_blocks, *(bias for bias in biases if bias is not None)])
    assert sum(structure.unit.n_weights for structure in structures) == expected
    for structure in structures:
        covered = {}
        for part in structure.slices:
            covered[part.parameter, part.axis] = covered.get((part.parameter, part.axis), 0) + part.width * structure.unit.n_items
        assert covered == {(name, axis): parameters[name].shape[axis] for name, axis in covered}


def test_what_writes_an_item_alone_decides_what_its_reader_sees(model):
    """The rows of an item changed, the reader's input changes in the columns of that item and nowhere else."""
    for structure in list_structures(model)[:2]:
        unit, parameters, item = structure.unit, dict(model.named_parameters()), structure.unit.n_items - 1
        reader, seen = model.get_submodule(unit.reader), []
        hook = reader.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))  # noqa: B023
        model(TOKENS_NT)
        before = {part.parameter: parameters[part.parameter].clone() for part in structure.slices}
        for part in structure.slices[:-1]:
            start = part.start + item * part.width
            parameters[part.parameter].narrow(part.axis, start, part.width).mul_(1.5)
        model(TOKENS_NT)
        hook.remove()
        differs = (seen[0] != seen[1]).flatten(0, -2).any(dim=0)
        assert differs.reshape(unit.n_items, unit.item_width).any(dim=1).tolist() == [i == item for i in range(unit.n_items)]
        for name, tensor in before.items():
            parameters[name].copy_(tensor)


def test_a_matrix_is_seen_by_items_and_what_is_known_of_items_by_columns(model):
    unit = list_structures(model)[0].unit
    weight_OI = weight_view(model, unit)
    axis = 0 if isinstance(model.get_submodule(unit.reader), Conv1D) else 1
    assert weight_OI.shape[1] == model.get_submodule(unit.reader).weight.shape[axis] == unit.n_items * unit.item_width
    kept_C = torch.arange(unit.n_items) != 0
    assert torch.equal((weight_OI * spread(unit, kept_C)).reshape(len(weight_OI), -1), weight_OI * spread(unit, kept_C))
    assert torch.equal(by_item(unit, weight_OI)[:, 0], weight_OI[:, : unit.item_width])
    assert not (weight_OI * spread(unit, ~kept_C))[:, unit.item_width :].any()


def test_units_are_chosen_by_their_items(make_tiny_model):
    model = make_tiny_model("llama")
    assert list_items(model, {Item.WEIGHT}) == list_units(model)
    assert [unit.name for unit in list_items(model, {Item.CHANNEL})] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    heads = list_items(model, {Item.HEAD_GROUP})
    assert [(unit.kind, unit.n_items, unit.item_width) for unit in heads] == [("self_attn", 2, 16)] * 2
    assert len(list_items(model, {Item.HEAD_GROUP, Item.CHANNEL})) == 4


def test_heads_that_are_normalised_together_go_together(make_tiny_model):
    units = list_items(make_tiny_model("olmo2"), {Item.HEAD_GROUP})
    assert [(unit.n_items, unit.item_width) for unit in units] == [(1, 32)] * 2


def test_a_family_without_an_entry_is_refused_by_name(make_tiny_model):
    with pytest.raises(ModelError, match="models of the type falcon cannot be pruned: expected one of gemma, "):
        list_structures(make_tiny_model("falcon"))


def test_a_model_without_such_items_is_told_so(make_tiny_model):
    with pytest.raises(ModelError, match="a model of the type llama has no experts that can go; choose another pruner"):
        list_items(make_tiny_model("llama"), {Item.EXPERT})
