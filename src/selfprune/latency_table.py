"""Measured seconds of a unit's matrix product at several sparsities, as `python -m selfprune.latency` writes them."""

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from selfprune.allocation import Unit
from selfprune.errors import ConfigError, did_you_mean

HOW_TO_MEASURE = "`python -m selfprune.latency output=FILE` measures a table on this machine"
Points = tuple[tuple[float, float], ...]
"""Sparsity and seconds, rising in sparsity from 0."""


@dataclass(frozen=True)
class LatencyTable:
    """Seconds by sparsity, per kind of unit or per unit.

    Between two points the seconds lie on a straight line, beyond the last they stay. A matrix with more zeros can always run
    as though it had fewer; so where a measurement says that more zeros take longer, the seconds of fewer zeros count (the
    running minimum), and never is a unit slower for being sparser.

    Attributes:
        points: unit kind or unit name -> its points; a name goes before a kind.

    Example:
        >>> table = LatencyTable({"mlp.up_proj": ((0.0, 4e-3), (0.8, 5e-3), (0.9, 2e-3))})
        >>> unit = Unit("model.layers.0.mlp.up_proj", 0, "mlp.up_proj", n_items=100)
        >>> table.seconds(unit, 0.8), table.seconds(unit, 0.85)
        (0.004, 0.003)
    """

    points: Mapping[str, Points]

    @classmethod
    def read(cls, path: Path) -> "LatencyTable":
        """Reads a JSON file, an object whose `seconds` are unit kind or name -> list of [sparsity, seconds].

        Raises:
            ConfigError: when it is none.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"budget.latency_table={path} cannot be read ({error}); {HOW_TO_MEASURE}") from error
        found = content.get("seconds") if isinstance(content, dict) else None
        if not isinstance(found, dict) or not found:
            raise ConfigError(
                f"budget.latency_table={path} must hold a JSON object whose 'seconds' map kinds of units to lists of [sparsity, "
                f"seconds], got {type(found if isinstance(content, dict) else content).__name__}; {HOW_TO_MEASURE}"
            )
        return cls({name: _points(path, name, rows) for name, rows in found.items()})

    def check(self, units: Iterable[Unit]) -> None:
        """Checks that the table has every unit, and nothing that is none.

        Raises:
            ConfigError: when it does not.
        """
        units = list(units)
        known = {name for unit in units for name in (unit.kind, unit.name)}
        for name in self.points.keys() - known:
            raise ConfigError(
                f"budget.latency_table names {name!r}, which is no kind and no unit of this model; its kinds, nearest first: "
                f"{did_you_mean(name, {unit.kind for unit in units})}"
            )
        missing = sorted({unit.kind for unit in units if not {unit.kind, unit.name} & self.points.keys()})
        if missing:
            raise ConfigError(
                f"budget.latency_table must give the seconds of every kind of unit, but {', '.join(missing)} has none; "
                f"{HOW_TO_MEASURE}"
            )

    def seconds(self, unit: Unit, sparsity: float) -> float:
        """Seconds of a unit at a sparsity in [0, 1]."""
        points = self.points.get(unit.name) or self.points[unit.kind]
        i = bisect_right(points, sparsity, key=lambda point: point[0]) - 1
        (low, fastest), (high, last) = points[i], points[min(i + 1, len(points) - 1)]
        part = (sparsity - low) / (high - low) if high > low else 0.0
        return fastest + part * (last - fastest)


def _points(path: Path, name: str, rows: Any) -> Points:
    """The points of one entry, checked and with the running minimum of the seconds."""
    try:
        pairs = [(_number(sparsity), _number(seconds)) for sparsity, seconds in rows]
    except (TypeError, ValueError):
        pairs = []
    sparsities = [sparsity for sparsity, _ in pairs]
    rises = all(low < high for low, high in pairwise(sparsities))
    is_sound = rises and all(sparsity <= 1 and seconds > 0 for sparsity, seconds in pairs)
    if not pairs or sparsities[0] != 0 or not is_sound:
        raise ConfigError(
            f"budget.latency_table={path}: {name} must be a list of [sparsity, seconds], the sparsities rising from 0 to at most "
            f"1 and the seconds above 0, got {json.dumps(rows)[:200]}; {HOW_TO_MEASURE}"
        )
    fastest, points = math.inf, []
    for sparsity, seconds in pairs:
        fastest = min(fastest, seconds)
        points.append((sparsity, fastest))
    return tuple(points)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"no finite number: {value}")
    return float(value)
