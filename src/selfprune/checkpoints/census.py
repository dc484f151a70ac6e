"""Counts the zeros of a checkpoint on disk, per unit and summed up, and finds the N:M patterns that they satisfy."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from selfprune.checkpoints.reader import Checkpoint
from selfprune.checkpoints.stored_tensors import StoredTensor
from selfprune.checkpoints.stored_units import FLOATS, IN_A_LIST, AnyTensor, Place, find_units

# The stronger first.
PATTERNS = {"1:4": (1, 4), "2:4": (2, 4), "4:8": (4, 8)}


@dataclass(frozen=True)
class Count:
    """How many of some weights are zero.

    Attributes:
        name: what they are.
        n_items: how many there are.
        n_zeros: how many are zero.
        patterns: the N:M patterns that all of them satisfy; None where unknown or no matter.
    """

    name: str
    n_items: int
    n_zeros: int
    patterns: tuple[str, ...] | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return self.n_zeros / self.n_items if self.n_items else 0.0


@dataclass(frozen=True)
class Census:
    """The zeros of a checkpoint.

    Attributes:
        units: the units, in the order of the blocks.
        other: all other weights, those of different blocks together.
        tied: tables that repeat another one bit for bit and were not counted.
    """

    units: dict[Place, Count]
    other: list[Count]
    tied: list[str]

    def kinds(self) -> list[Count]:
        """One count per kind, experts together; the path of the list comes before it where there are several lists."""
        several = len({place.path for place in self.units}) > 1
        groups = defaultdict(list)
        for place, count in self.units.items():
            kind = _without_numbers(place.kind)
            groups[f"{place.path}.*.{kind}" if several else kind].append(count)
        return [add(name, counts) for name, counts in groups.items()]

    def blocks(self) -> list[Count]:
        """One count per block."""
        groups = defaultdict(list)
        for place, count in self.units.items():
            groups[f"{place.path}.{place.block}"].append(count)
        return [add(name, counts) for name, counts in groups.items()]


def add(name: str, counts: Iterable[Count]) -> Count:
    """The sum of counts, with the patterns that all of them satisfy."""
    counts = list(counts)
    known = [count.patterns for count in counts if count.patterns is not None]
    common = tuple(pattern for pattern in PATTERNS if all(pattern in satisfied for satisfied in known))
    patterns = common if known and len(known) == len(counts) else None
    return Count(name, sum(count.n_items for count in counts), sum(count.n_zeros for count in counts), patterns)


def take_census(checkpoint: Checkpoint) -> Census:
    """Counts the zeros of every weight, one tensor in memory at a time.

    Raises:
        ModelError: when the checkpoint is quantised or holds no unit.
    """
    axes = find_units(checkpoint)
    units = {}
    for place, (tensor, axis) in axes.items():
        units[place] = Count(tensor.name.removesuffix(".weight"), *_count(tensor, axis))
    counted = {tensor.name for tensor, _ in axes.values()}
    rest = [t for name, t in checkpoint.tensors.items() if name not in counted and t.dtype in FLOATS]
    tied = _repeated([t for t in rest if isinstance(t, StoredTensor) and len(t.shape) == 2 and not IN_A_LIST.fullmatch(t.name)])
    groups = defaultdict(list)
    for tensor in rest:
        if tensor.name not in tied:
            n_items, n_zeros, _ = _count(tensor, None)
            groups[_without_numbers(tensor.name)].append(Count(tensor.name, n_items, n_zeros))
    return Census(units, [add(name, groups[name]) for name in sorted(groups)], tied)


def _count(tensor: AnyTensor, input_axis: int | None) -> tuple[int, int, tuple[str, ...] | None]:
    """Weights, zeros and the patterns satisfied."""
    n_items, n_nonzero = torch.Size(tensor.shape).numel(), 0
    patterns = [p for p, (_, m) in PATTERNS.items() if input_axis is not None and tensor.shape[input_axis] % m == 0]
    for nonzero in tensor.nonzero():
        n_nonzero += int(nonzero.count_nonzero())
        if patterns and input_axis is not None:
            patterns = _satisfied(nonzero.movedim(input_axis, -1), patterns)
    return n_items, n_items - n_nonzero, None if input_axis is None else tuple(patterns)


def _satisfied(nonzero: Tensor, patterns: list[str]) -> list[str]:
    """Those of the patterns by which of every m consecutive inputs (last axis) at most n are not zero."""
    found: list[str] = []
    for pattern in patterns:
        n, m = PATTERNS[pattern]
        is_implied = any(m % width == 0 and n_kept * m // width <= n for n_kept, width in map(PATTERNS.__getitem__, found))
        if is_implied or int(nonzero.reshape(*nonzero.shape[:-1], -1, m).sum(-1, dtype=torch.uint8).amax()) <= n:
            found.append(pattern)
    return found


def _repeated(tables: list[StoredTensor]) -> list[str]:
    """The tables that repeat an earlier one bit for bit: tied weights that were stored twice."""
    repeated = []
    for i, table in enumerate(tables):
        for first in tables[:i]:
            alike = (first.shape, first.dtype) == (table.shape, table.dtype)
            if alike and all(torch.equal(a, b) for a, b in zip(first.pieces(), table.pieces(), strict=True)):
                repeated.append(table.name)
                break
    return repeated


def _without_numbers(name: str) -> str:
    """A name with its numbers replaced by stars."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
