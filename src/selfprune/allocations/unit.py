"""What can be pruned by degrees, and how far each of it is pruned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

Allocation = dict[str, int]
"""Unit name -> level (number of removed items). The genome of the search."""


class Item(str, Enum):
    """What is removed from a unit: a weight, a channel of an FFN, an expert, or the heads that share their keys and values."""

    WEIGHT = "WEIGHT"
    CHANNEL = "CHANNEL"
    HEAD_GROUP = "HEAD_GROUP"
    EXPERT = "EXPERT"


@dataclass(frozen=True)
class Unit:
    """Something that can be pruned by degrees.

    Attributes:
        name: of single weights the parameter's path in the model without `.weight`, such as `model.layers.3.mlp.up_proj`; of
            heads or channels the path of their sublayer, such as `model.layers.3.mlp`.
        block: index of the decoder block that holds it.
        kind: its path inside the block, such as `mlp.up_proj`; the same in every block.
        n_items: how many items can be removed.
        weights_per_item: all parameters that go with one item; 1 for unstructured sparsity.
        item: what its items are.
        reader: of heads or channels the matrix whose input columns they are, as a path like `name`; empty for single weights.
        item_width: columns of the reader per item; of experts, whose matrices are stacked, rows.
        least_kept: items that stay in any case: as many experts as a token is sent to.
    """

    name: str
    block: int
    kind: str
    n_items: int
    weights_per_item: int = 1
    item: Item = Item.WEIGHT
    reader: str = ""
    item_width: int = 1
    least_kept: int = 0

    @property
    def matrix(self) -> str:
        """The path of the matrix that is pruned: the reader, or the unit's own."""
        return self.reader or self.name

    @property
    def n_weights(self) -> int:
        """Weights of the whole unit."""
        return self.n_items * self.weights_per_item


def n_removed_weights(allocation: Allocation, units: Sequence[Unit]) -> int:
    """Weights that go with the items which an allocation removes of these units."""
    return sum(allocation[unit.name] * unit.weights_per_item for unit in units)


def n_weights(units: Iterable[Unit]) -> int:
    """Weights of these units."""
    return sum(unit.n_weights for unit in units)


def sparsity_of(allocation: Allocation, units: Sequence[Unit]) -> float:
    """The share of the weights of these units that goes."""
    return n_removed_weights(allocation, units) / n_weights(units)
