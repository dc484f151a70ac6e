"""What can be pruned by degrees, and how far each of it is pruned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Allocation = dict[str, int]
"""Unit name -> level (number of removed items). The genome of the search."""


@dataclass(frozen=True)
class Unit:
    """Something that can be pruned by degrees.

    Attributes:
        name: the parameter's path in the model without `.weight`, such as `model.layers.3.mlp.up_proj`.
        block: index of the decoder block that holds it.
        kind: its path inside the block, such as `mlp.up_proj`; the same in every block.
        n_items: how many items can be removed.
        weights_per_item: weights that go with one item; 1 for unstructured sparsity.
    """

    name: str
    block: int
    kind: str
    n_items: int
    weights_per_item: int = 1

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
