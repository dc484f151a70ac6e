import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from language_space import ALLOCATION, SHORT, SIZES, SPACE, make_space

from selfprune.proposers.coefficients import MAX_OFFSET, Coefficients, fit
from selfprune.proposers.prompted.coefficient_replies import coefficients_schema, parse_coefficients, show_coefficients
from selfprune.proposers.prompted.replies import ReplyError
from selfprune.proposers.prompted.unit_view import UnitView

VIEW = UnitView(SPACE)
KINDS = list(SIZES)
PERCENT = st.integers(-MAX_OFFSET, MAX_OFFSET)


def text(offset=None, slope=None, **changes):
    of_kinds = {"offset": offset or dict.fromkeys(SHORT, 5), "slope": slope or dict.fromkeys(SHORT, 0)}
    return json.dumps({**of_kinds, "first": 0, "last": 0, "spread": 100, **changes})


def test_a_unit_is_the_target_plus_offset_slope_and_edge_scaled_by_the_spread():
    offset, slope = dict(zip(KINDS, range(7), strict=True)), dict(zip(KINDS, range(0, -7, -1), strict=True))
    wished = Coefficients(offset, slope, first=-10.0, last=4.0, spread=50.0).expand(VIEW)
    depth = {0: -1.0, 1: -1 / 3, 2: 1 / 3, 3: 1.0}
    edge = {0: -10.0, 3: 4.0}
    for unit in SPACE.grid.units:
        percent = offset[unit.kind] + slope[unit.kind] * depth[unit.block] + edge.get(unit.block, 0.0)
        assert wished[unit.name] == pytest.approx(SPACE.target_sparsity + 0.5 * percent / 100)


def test_a_single_block_has_no_depth_and_both_edges():
    view = UnitView(make_space(n_blocks=1))
    wished = Coefficients(slope=dict.fromkeys(KINDS, 9.0), first=2.0, last=3.0).expand(view)
    assert list(wished.values()) == pytest.approx([0.65] * 7, abs=1e-4)


@given(
    st.fixed_dictionaries(dict.fromkeys(KINDS, PERCENT)), st.fixed_dictionaries(dict.fromkeys(KINDS, PERCENT)), PERCENT, PERCENT
)
def test_what_is_shown_is_read_back(offset, slope, first, last):
    shown = Coefficients(offset, slope, first, last)
    repairs = []
    assert parse_coefficients(show_coefficients(VIEW, shown), KINDS, repairs) == shown
    assert not repairs


def test_the_fit_of_an_allocation_that_coefficients_can_say_is_that_allocation():
    offset = {kind: 3.0 * i - 9 for i, kind in enumerate(KINDS)}
    wished = Coefficients(offset, {"mlp.up_proj": 5.0}, first=-12.0, last=2.0).expand(VIEW)
    allocation = SPACE.project(wished)
    fitted, sparsities = fit(VIEW, allocation).expand(VIEW), SPACE.grid.sparsities(allocation)
    # A level of the smallest unit is 5% of it.
    assert max(abs(fitted[name] - sparsities[name]) for name in fitted) < 0.05


def test_no_other_coefficients_are_nearer_than_the_fit():
    def distance(coefficients):
        wished, sparsities = coefficients.expand(VIEW), SPACE.grid.sparsities(ALLOCATION)
        return sum(unit.n_weights * (wished[unit.name] - sparsities[unit.name]) ** 2 for unit in SPACE.grid.units)

    found = fit(VIEW, ALLOCATION)
    nearest = distance(found)
    for kind in KINDS:
        for step in (-0.5, 0.5):
            moved = {**found.offset, kind: found.offset[kind] + step}
            assert distance(Coefficients(moved, found.slope, found.first, found.last)) > nearest
    assert distance(Coefficients(found.offset, found.slope, found.first + 0.5, found.last)) > nearest


@pytest.mark.parametrize(
    ("reply", "repair"),
    [
        (text(), ""),
        (f"Sure: ```json\n{text()}\n``` Good luck.", ""),
        (text(dict.fromkeys(SHORT, "5%")), "a number in quotes"),
        (text(spread=5000), "a percent clipped"),
        (text({"q": 1}), "offset of a kind left out"),
        (text({"q_proj": 1, "k": 2, "v": 3, "o": 4, "mlp.gate_proj": 5, "up": 6, "down": 7}), ""),
        ('{"offset": {"q": 5}}', "slope of a kind left out"),
    ],
)
def test_an_obvious_meaning_is_mended_and_said(reply, repair):
    repairs = []
    read = parse_coefficients(reply, KINDS, repairs)
    assert read.offset["self_attn.q_proj"] in (1, 5)
    assert (repair in repairs) if repair else not repairs
    assert 0 <= read.spread <= 200


BROKEN = ["", "{", "[]", "{}", '{"offset":[]}', '{"offset":{}}', '{"offset":{"q":NaN}}', '{"offset":{"wheel":1}}', text()[:-40]]


@pytest.mark.parametrize("reply", [*BROKEN, '{"offset":{"q":true}}'])
def test_what_cannot_be_read_is_refused(reply):
    with pytest.raises(ReplyError):
        parse_coefficients(reply, KINDS, [])


def test_the_schema_asks_for_what_is_read():
    schema = coefficients_schema(SHORT)
    assert schema["required"] == list(json.loads(text())) == list(json.loads(show_coefficients(VIEW, Coefficients())))
    assert schema["properties"]["offset"]["required"] == SHORT
