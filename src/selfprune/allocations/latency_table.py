"""Measured seconds of a unit's matrix product at several sparsities, as `python -m selfprune.latency` writes them."""

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError, did_you_mean
from selfprune.storage.recorded_files import Count, Score, Text, read_json

HOW_TO_MEASURE = "`python -m selfprune.latency output=FILE` measures a table on this machine"
Points = tuple[tuple[float, float], ...]
"""Sparsity and seconds, rising in sparsity from 0."""


class Circumstances(TypedDict, total=False):
    """What the seconds depend on; tables by hand and of earlier versions may not say all of it.

    Attributes:
        machine: name of the processor or GPU.
        device: `cpu`, or the name of the GPU.
        n_threads: of torch, which count on a CPU.
        torch: version of torch.
        dtype: number format, such as `bfloat16`.
        n_tokens: tokens that are multiplied at once.
        shapes: unit kind or name -> rows and columns of a matrix, matrices that run, and tokens that each of them sees; of heads
            and channels their number, weights of each, and columns by which each is read.
        mode: of heads and channels, what the model does: PREFILL, DECODE or MIX.
        batch_size: prompts at once.
        context: tokens of each prompt.
        n_new: tokens that are written after it, of MIX.
    """

    machine: Text
    device: Text
    n_threads: Count
    torch: Text
    dtype: Text
    n_tokens: Count
    shapes: dict[str, list[Score]]
    mode: Text
    batch_size: Count
    context: Count
    n_new: Count


class _File(TypedDict):
    """The keys of a table's file that are read; there are more."""

    measured: NotRequired[Circumstances]
    seconds_outside: NotRequired[Score]
    seconds: dict[str, Any]


@dataclass(frozen=True)
class LatencyTable:
    """Seconds by sparsity, per kind of unit or per unit.

    Between two points the seconds lie on a straight line, beyond the last they stay. A matrix with more zeros can always run
    as though it had fewer; so where a measurement says that more zeros take longer, the seconds of fewer zeros count (the
    running minimum), and never is a unit slower for being sparser.

    Attributes:
        points: unit kind or unit name -> its points; a name goes before a kind.
        measured: on what, and of what.
        seconds_outside: what the model takes besides its units; None where that was not measured.

    Example:
        >>> table = LatencyTable({"mlp.up_proj": ((0.0, 4e-3), (0.8, 5e-3), (0.9, 2e-3))})
        >>> unit = Unit("model.layers.0.mlp.up_proj", 0, "mlp.up_proj", n_items=100)
        >>> table.seconds(unit, 0.8), table.seconds(unit, 0.85)
        (0.004, 0.003)
    """

    points: Mapping[str, Points]
    measured: Circumstances = field(default_factory=Circumstances)
    seconds_outside: float | None = None

    @classmethod
    def read(cls, path: Path) -> "LatencyTable":
        """Reads a JSON file, an object whose `seconds` are unit kind or name -> list of [sparsity, seconds].

        Raises:
            ConfigError: when it is none.
        """
        try:
            content = read_json(path, _File, HOW_TO_MEASURE, extra=True)
        except ConfigError as error:
            raise ConfigError(f"budget.latency_table={path} is no table: {error}") from error
        if not content["seconds"]:
            raise ConfigError(f"budget.latency_table={path} names no unit under 'seconds'; {HOW_TO_MEASURE}")
        points = {name: _points(path, name, rows) for name, rows in content["seconds"].items()}
        return cls(points, content.get("measured", Circumstances()), content.get("seconds_outside"))

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

    def contradiction(self, of_run: Circumstances) -> str:
        """What the table was measured for that is something else than what a run prunes; empty where nothing is.

        Args:
            of_run: dtype, and machine, tokens and shapes as far as they are known.
        """
        there, here = self.measured.get("machine"), of_run.get("machine")
        if there and here and there != here:
            return (
                f"was measured on {there}, but the run is for {here}; if the pruned model is to run on the former, say so by "
                f"budget.machine='{there}', else measure anew"
            )
        for name in ("dtype", "n_tokens"):
            if name in self.measured and name in of_run and self.measured[name] != of_run[name]:
                return f"was measured with {name}={self.measured[name]}, but this run has {name}={of_run[name]}"
        shapes = of_run.get("shapes", {})
        for unit, shape in self.measured.get("shapes", {}).items():
            if unit in shapes and shapes[unit] != shape:
                what = "outputs, inputs, matrices, tokens of each" if len(shape) == 4 else "items, weights and columns of each"
                return f"was measured with {unit} of {shape} ({what}), but this model has it of {shapes[unit]}"
        return ""

    def doubts(self, of_run: Circumstances) -> list[str]:
        """What makes it doubtful that a run's machine takes these seconds, a paragraph each.

        Args:
            of_run: all circumstances.
        """
        names = ["torch", *(["n_threads"] if of_run.get("device") == "cpu" else [])]
        there, here = dict(self.measured), dict(of_run)
        other = [
            f"{name} {there[name]} there and {here[name]} here" for name in names if there.get(name, here[name]) != here[name]
        ]
        unsaid = [name for name in ("machine", *names, "dtype", "n_tokens", "shapes") if name in here and name not in there]
        paragraphs = []
        if other:
            paragraphs.append(
                f"the seconds of budget.latency_table were measured otherwise: {', '.join(other)}; that is right if the pruned "
                f"model is to run so, else measure anew, since {HOW_TO_MEASURE}"
            )
        if unsaid:
            paragraphs.append(
                f"budget.latency_table does not say {', '.join(unsaid)} of its measurements (it is by hand or of an earlier "
                f"version), so nobody can tell whether it is of this model and machine; {HOW_TO_MEASURE}"
            )
        return paragraphs

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
