import math

from language_space import ALLOCATION, SPACE

from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.target import Target
from selfprune.allocations.unit import Unit
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.move_values import MoveValues
from selfprune.proposers.prompted.replies import parse_kind
from selfprune.proposers.prompted.unit_view import UnitView
from selfprune.proposers.unit_values import UnitValues

VIEW = UnitView(SPACE)


def test_sensitivities_are_shown_per_weight_from_0_to_99():
    rises = {unit.name: 0.0 for unit in SPACE.grid.units} | {"layers.2.self_attn.k_proj": 3.0, "layers.1.mlp.up_proj": 13.5}
    rises |= {"layers.0.mlp.up_proj": -5.0, "layers.0.mlp.down_proj": math.nan}
    space = SearchSpace(SPACE.grid, SPACE.target, rises)
    view, worth = UnitView(space), UnitValues.of_sensitivities(space)
    assert [row.split() for row in view.kind_rows(worth)][1] == ["k", "3%", "99"]
    assert view.block_sensitivities(worth) == "0 99 22 0"
    sources, destinations = view.promising(ALLOCATION, worth)
    # The smaller unit is worth twice as much per weight, but is known three times less well.
    assert [unit.name for unit in sources[:2]] == ["layers.1.mlp.up_proj", "layers.2.self_attn.k_proj"]
    assert destinations[0].name == "layers.0.mlp.up_proj"
    assert view.unit_rows(sources[:2], ALLOCATION, worth)[0].split() == ["1", "up", "57", "50", "50"]


def test_without_any_worth_the_most_pruned_units_are_spared_first():
    assert UnitValues.of_sensitivities(SearchSpace(SPACE.grid, SPACE.target)) is None
    sources, destinations = VIEW.promising(ALLOCATION, None)
    sparsities = SPACE.grid.sparsities(ALLOCATION)
    assert sparsities[sources[0].name] == max(sparsities.values())
    assert sparsities[destinations[0].name] == min(sparsities.values())
    assert len(VIEW.unit_rows(sources[:1], ALLOCATION, None)[0].split()) == 3
    assert (VIEW.block_sensitivities(None), VIEW.kind_rows(None)[0].split()[1:]) == ("not measured", ["9%"])


def test_gradients_rank_by_weight_whatever_the_size_of_a_level():
    steps = {name: levels.step for name, levels in SPACE.grid.levels.items()}
    restoring = {unit.name: steps[unit.name] for unit in SPACE.grid.units} | {"layers.1.self_attn.v_proj": 9e9}
    removing = {unit.name: 2.0 * steps[unit.name] for unit in SPACE.grid.units} | {
        "layers.2.mlp.up_proj": 0.5,
        "layers.3.mlp.up_proj": math.nan,
    }
    worth = UnitValues.of_moves(MoveValues(restoring, removing, 0), SPACE.grid)
    assert worth.gains["layers.0.mlp.up_proj"] == worth.gains["layers.0.self_attn.k_proj"] == 1.0
    sources, destinations = VIEW.promising(ALLOCATION, worth)
    assert (sources[0].name, destinations[0].name) == ("layers.1.self_attn.v_proj", "layers.2.mlp.up_proj")
    assert destinations[-1].name == "layers.3.mlp.up_proj"


def test_a_unit_without_room_is_in_neither_list():
    first, *rest = SPACE.grid.units
    allocation = {**ALLOCATION, first.name: 0, rest[0].name: SPACE.grid.levels[rest[0].name].highest}
    sources, destinations = VIEW.promising(allocation, None)
    assert first not in sources
    assert rest[0] not in destinations


def test_names_are_shortened_only_as_far_as_they_stay_different():
    kinds = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "fc", "a.fc"]
    units = [Unit(kind, 0, kind, 100) for kind in kinds]
    view = UnitView(
        SearchSpace(LevelGrid.with_constant_step(units, 0.1), Target.in_weights(LevelGrid.with_constant_step(units, 0.1), 300))
    )
    assert list(view.short.values()) == ["c_attn", "attn.c", "c_fc", "mlp.c", "fc", "a.fc"]
    assert [parse_kind(name, kinds) for name in view.short.values()] == kinds
