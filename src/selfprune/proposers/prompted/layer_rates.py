"""Allocations as lists of one pruning rate per layer, and how a language model's lists and choices are read."""

import json
import math
import re
from collections.abc import Iterator
from enum import Enum
from itertools import combinations
from typing import Any

from selfprune.allocations.unit import Allocation, Unit, n_weights
from selfprune.proposers.base import SearchSpace
from selfprune.proposers.prompted.replies import (
    MAX_CHARACTERS,
    MAX_PERCENT,
    ReplyError,
    compact,
    object_schema,
    parse_json_object,
    parse_percent,
)

MAX_LISTED_CHOICES = 500
"""Most sets of parents that a grammar spells out; beyond, code alone keeps them distinct."""
FLAT_LIST = re.compile(r"\[[^\[\]{}]*\]")


class Granularity(str, Enum):
    """What has a rate of its own."""

    BLOCK = "BLOCK"
    UNIT = "UNIT"


class LayerRates:
    """The layers of a search space, and their rates in percent.

    Args:
        space: the search space.
        granularity: whether a layer is a block, whose rate all its units take, or a single unit.
        resolution: percent between adjacent rates.

    Attributes:
        layers: the units of every layer, in model order.

    Example:
        >>> LayerRates(space, Granularity.BLOCK, resolution=1).text(allocation)
        '{"rates":[55,61,64]}'
    """

    def __init__(self, space: SearchSpace, granularity: Granularity, resolution: int) -> None:
        self._space, self._granularity, self._resolution = space, granularity, resolution
        self._highest = MAX_PERCENT // resolution * resolution
        of_layer: dict[int | str, list[Unit]] = {}
        for unit in space.grid.units:
            of_layer.setdefault(unit.block if granularity is Granularity.BLOCK else unit.name, []).append(unit)
        self.layers = (
            [of_layer[block] for block in sorted(of_layer)] if granularity is Granularity.BLOCK else [*of_layer.values()]
        )

    @property
    def order(self) -> str:
        """In which order the rates stand, for prompts."""
        if self._granularity is Granularity.BLOCK:
            return "from the first layer to the last"
        kinds = dict.fromkeys(unit.kind for unit in self._space.grid.units)
        return f"{' '.join(kinds)} of the first block, then of the next"

    def shown(self, allocation: Allocation | None) -> tuple[int, ...]:
        """The rates of an allocation at the resolution; the target for None."""
        rates = [self._space.target_sparsity] * len(self.layers)
        if allocation is not None:
            rates = [self._space.grid.sparsity(allocation, layer) for layer in self.layers]
        return tuple(self._rounded(100 * rate) for rate in rates)

    def text(self, allocation: Allocation | None) -> str:
        """The JSON by which an allocation is shown, which is also the form of a reply."""
        return compact({"rates": self.shown(allocation)})

    def expand(self, rates: tuple[int, ...]) -> dict[str, float]:
        """Unit name -> the sparsity that its layer's rate wishes."""
        return {unit.name: rate / 100 for rate, layer in zip(rates, self.layers, strict=True) for unit in layer}

    def mean(self, rates: tuple[int, ...]) -> float:
        """The share of all weights, in percent, that these rates remove."""
        removed = [rate * n_weights(layer) for rate, layer in zip(rates, self.layers, strict=True)]
        return sum(removed) / self._space.grid.n_weights()

    def schema(self) -> dict[str, Any]:
        """JSON schema of what `parse` reads."""
        rate: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": self._highest}
        if self._resolution > 1:
            rate["multipleOf"] = self._resolution
        return object_schema(
            {"rates": {"type": "array", "items": rate, "minItems": len(self.layers), "maxItems": len(self.layers)}}
        )

    def parse(self, text: str) -> tuple[tuple[int, ...], list[str]]:
        """Reads `{"rates": [percent, ...]}`, or else the last list of numbers in a text.

        Percents are clipped and rounded; numbers up to 1, not all whole, are taken as fractions; a list of blocks of another
        length is taken as a profile over depth and interpolated.

        Returns:
            one rate per layer, and what had to be mended.

        Raises:
            ReplyError: when the text cannot be read so.
        """
        listed, repairs = _find_list(text, "rates")
        rates = [parse_percent(entry, -math.inf, math.inf, repairs) for entry in listed]
        if rates and max(rates) <= 1 and min(rates) >= 0 and any(rate % 1 for rate in rates):
            rates = [100 * rate for rate in rates]
            repairs.append("fractions read as percents")
        if len(rates) != len(self.layers):
            if len(rates) < 2 or self._granularity is Granularity.UNIT:
                raise ReplyError(f"rates needs {len(self.layers)} percents, got {len(rates)}")
            repairs.append(f"{len(rates)} rates interpolated to {len(self.layers)}")
        clipped = [min(max(rate, 0.0), self._highest) for rate in rates]
        if clipped != rates:
            repairs.append(f"percents clipped to [0, {self._highest}]")
        rounded = tuple(map(self._rounded, clipped))
        if any(abs(rate - whole) > 1e-9 for rate, whole in zip(clipped, rounded, strict=True)):
            repairs.append(f"percents rounded to multiples of {self._resolution}")
        return (rounded if len(rates) == len(self.layers) else self._interpolated(clipped)), repairs

    def _rounded(self, percent: float) -> int:
        return min(max(self._resolution * round(percent / self._resolution), 0), self._highest)

    def _interpolated(self, profile: list[float]) -> tuple[int, ...]:
        """The profile over depth with one rate per layer, linear between its own."""
        rates = []
        for i in range(len(self.layers)):
            position = i * (len(profile) - 1) / max(len(self.layers) - 1, 1)
            left = min(int(position), len(profile) - 2)
            rates.append(self._rounded(profile[left] + (position - left) * (profile[left + 1] - profile[left])))
        return tuple(rates)


def parents_schema(n_parents: int, n_shown: int) -> dict[str, Any]:
    """JSON schema of what `parse_parents` reads."""
    if math.comb(n_shown, n_parents) <= MAX_LISTED_CHOICES:
        # The keyword uniqueItems is not in every grammar compiler.
        return object_schema({"parents": {"enum": [list(choice) for choice in combinations(range(1, n_shown + 1), n_parents)]}})
    number = {"type": "integer", "minimum": 1, "maximum": n_shown}
    return object_schema({"parents": {"type": "array", "items": number, "minItems": n_parents, "maxItems": n_parents}})


def parse_parents(text: str, n_parents: int, n_shown: int) -> tuple[list[int], list[str]]:
    """Reads `{"parents": [number, ...]}`, numbers from 1, or else the last list of numbers in a text.

    Returns:
        the positions from 0, at least two and at most `n_parents`, and what had to be mended.

    Raises:
        ReplyError: when fewer than two can be read.
    """
    listed, repairs = _find_list(text, "parents")
    known = {entry: entry - 1 for entry in range(1, n_shown + 1)}
    numbers = [parse_percent(entry, -math.inf, math.inf, repairs) for entry in listed]
    chosen = list(dict.fromkeys(known[int(number)] for number in numbers if number in known))
    if len(chosen) < 2:
        raise ReplyError(f"parents needs {n_parents} different numbers from 1 to {n_shown}")
    if len(chosen) < len(numbers):
        repairs.append("numbers out of range or named twice left out")
    if len(chosen) != n_parents:
        repairs.append(f"{len(chosen)} parents named instead of {n_parents}")
    return chosen[:n_parents], repairs


def _find_list(text: str, key: str) -> tuple[list[Any], list[str]]:
    """The list under a key, or else the last flat list of numbers, and what had to be mended."""
    try:
        value = parse_json_object(text, (key,))[key]
    except ReplyError:
        value = None
    if isinstance(value, list):
        return value, []
    for listed in _flat_lists(text[:MAX_CHARACTERS]):
        value = listed
    if not isinstance(value, list):
        raise ReplyError(f"no list of {key}")
    return value, ["a bare list read"]


def _flat_lists(text: str) -> Iterator[list[Any]]:
    """The lists of numbers, which may carry percent signs."""
    for match in FLAT_LIST.finditer(text):
        try:
            listed = json.loads(match[0].replace("%", ""))
            for entry in listed:
                parse_percent(entry, -math.inf, math.inf)
        except (ValueError, ReplyError):
            continue
        if listed:
            yield listed
