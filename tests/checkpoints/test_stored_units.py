"""Units are read off a loaded model and off its checkpoint on disk by two pieces of code, which must agree."""

from collections import Counter

import pytest

from selfprune.checkpoints.reader import Checkpoint
from selfprune.checkpoints.stored_units import find_units
from selfprune.models.units import list_units, n_row_groups, stored_weight, weight_view


@pytest.fixture
def family(any_family):
    """Every family, not one of each layout alone."""
    return any_family


def test_the_units_of_every_family_have_the_same_names_shapes_and_sizes_in_memory_and_on_disk(family, make_tiny_model, tmp_path):
    """Experts that are fused in memory lie on disk one by one, under names of their own; of them the shapes are compared."""
    model = make_tiny_model(family)
    model.save_pretrained(tmp_path)
    on_disk = {f"{place.path}.{place.block}.{place.kind}": found for place, found in find_units(Checkpoint(tmp_path)).items()}
    units = list_units(model)
    fused = [unit for unit in units if n_row_groups(model, unit) > 1]
    experts = {name: found for name, found in on_disk.items() if ".experts." in name and fused}
    assert on_disk.keys() - experts.keys() == {unit.name for unit in units} - {unit.name for unit in fused}
    for unit in units:
        if unit not in fused:
            tensor, input_axis = on_disk[unit.name]
            assert tensor.shape == tuple(stored_weight(model, unit).shape)
            assert tensor.shape[input_axis] == weight_view(model, unit).shape[1]
            assert tensor.shape[0] * tensor.shape[1] == unit.n_weights
    in_memory = Counter(shape for unit in fused for shape in matrices_of(model, unit))
    assert Counter(tensor.shape for tensor, _ in experts.values()) == in_memory
    assert {input_axis for _, input_axis in experts.values()} <= {1}


def matrices_of(model, unit):
    """The shapes [O, I] that a fused unit has on disk: of every expert one, or two where gate and up are fused as well."""
    n_experts, n_out, n_in = stored_weight(model, unit).shape
    n_parts = 2 if unit.kind.endswith("gate_up_proj") else 1
    return [(n_out // n_parts, n_in)] * (n_experts * n_parts)
