"""Where the units of a search space stand: by kind, and by the position of their block."""

from selfprune.proposers.base import SearchSpace


class UnitPlaces:
    """The kinds and the blocks of the units.

    Args:
        space: the search space.

    Attributes:
        kinds: the kinds in model order.
        blocks: the indices, in model order, of the blocks that have units.
        position: block index -> its position among them.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.kinds = list(dict.fromkeys(unit.kind for unit in space.grid.units))
        self.blocks = sorted({unit.block for unit in space.grid.units})
        self.position = {block: position for position, block in enumerate(self.blocks)}
