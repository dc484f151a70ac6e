from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Item, Unit
from selfprune.reports.width_picture import width_figure


def test_the_bars_are_what_each_block_keeps_beside_what_it_had():
    units = [Unit(f"{b}.{kind}", b, kind, n, w, item) for b in range(3) for kind, n, w, item in
             (("self_attn", 4, 90, Item.HEAD_GROUP), ("mlp", 60, 8, Item.CHANNEL))]  # fmt: skip
    allocation = {"0.self_attn": 0, "1.self_attn": 4, "2.self_attn": 3, "0.mlp": 0, "1.mlp": 60, "2.mlp": 12}
    heads, channels = width_figure(allocation, LevelGrid.of_structures(units, 0.1)).axes
    assert [bar.get_height() for bar in heads.patches] == [4, 4, 4, 4, 0, 1]
    assert [bar.get_height() for bar in channels.patches] == [60, 60, 60, 60, 0, 48]
    assert (heads.get_ylabel(), channels.get_ylabel(), channels.get_xlabel()) == ("groups of heads", "FFN channels", "block")
    assert [text.get_text() for text in channels.texts] == ["60", "0", "48"]
