"""How wide blocks are, from any config.json."""

import pytest

from selfprune.checkpoints.widths import Width, block_widths, is_per_layer

ALIKE = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


def test_blocks_have_their_own_width_or_that_of_all():
    own = {"01": {"num_key_value_heads": 1, "num_attention_heads": 2, "skip": ["mlp"]}}
    assert block_widths(ALIKE | {"per_layer_config": own}) == [Width(0, 4, 2, 48), Width(1, 2, 1, 0)]
    assert block_widths(ALIKE | {"per_layer_config": {"00": {"skip": ["attention"]}}})[0] == Width(0, 0, 0, 48)
    assert is_per_layer({"per_layer_config": own})


def test_without_groups_every_head_has_keys_of_its_own():
    assert block_widths({key: value for key, value in ALIKE.items() if "key_value" not in key})[0] == Width(0, 4, 4, 48)
    assert not is_per_layer(ALIKE)


@pytest.mark.parametrize(
    "odd",
    [{"num_hidden_layers": 10**12}, {"num_hidden_layers": None}, {"num_attention_heads": "4"}, {"intermediate_size": None},
     {"per_layer_config": {"00": 3}}],
)  # fmt: skip
def test_a_config_that_does_not_name_them_tells_none(odd):
    assert block_widths(ALIKE | odd) == []


@pytest.mark.parametrize("own", [{"x": {}}, {"00": {"skip": 3}}, [1], "x"])
def test_what_is_no_width_of_a_block_is_left_aside(own):
    assert block_widths(ALIKE | {"per_layer_config": own}) == [Width(0, 4, 2, 48), Width(1, 4, 2, 48)]
