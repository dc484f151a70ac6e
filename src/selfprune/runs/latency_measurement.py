"""Measures the seconds of a model's units on this machine, for `budget.measure=LATENCY`.

Only the shapes of the model are read; the weights are random. Limits: each product is measured alone, with warm caches, so the
table knows nothing of attention, of the head, and of kernels that a serving engine brings along. With `items=STRUCTURES` whole
attentions and FFNs are timed at several widths inside a model that reads or writes tokens, and what the model takes besides.
"""

import json
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore

from selfprune.allocations.unit import Unit
from selfprune.errors import ConfigError
from selfprune.models.loading import find_source, load_skeleton
from selfprune.models.model_config import DType, ModelConfig
from selfprune.models.structures import list_items
from selfprune.models.units import list_units
from selfprune.pruners.selection import parse_pattern
from selfprune.runs.showing.display import Display
from selfprune.storage.lock import held_file
from selfprune.storage.path_fields import path_field
from selfprune.storage.whole_files import write_whole
from selfprune.timing.structure_seconds import MODULES, structure_seconds, structure_shapes
from selfprune.timing.unit_seconds import Rows, Shape, circumstances, fastest_rows, unit_shapes, weight_shapes
from selfprune.timing.workload import Workload


class Items(str, Enum):
    """What is pruned: single weights, or heads and channels."""

    WEIGHTS = "WEIGHTS"
    STRUCTURES = "STRUCTURES"


@dataclass
class LatencyConfig:
    """What is measured.

    Attributes:
        model: whose shapes, in which number format and on which device.
        output: the JSON file to write, which must not exist.
        items: what a run prunes.
        n_tokens: of single weights, tokens that are multiplied at once: a few when a model writes, many when it reads.
        workload: of heads and channels, what the model does.
        n_widths: of heads and channels, the widths of each sublayer, from whole to gone.
        sparsities: where to measure besides 0; ignored under a pattern, which knows only one.
        pattern: `N:M`, as the pruner's; empty for none.
        n_repeats: measurements, of which the median counts.
        seed: of the random weights.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    output: str = path_field()
    items: Items = Items.WEIGHTS
    n_tokens: int = 128
    workload: Workload = field(default_factory=Workload)
    n_widths: int = 17
    sparsities: list[float] = field(default_factory=lambda: [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
    pattern: str = ""
    n_repeats: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.output:
            raise ConfigError("output must name the file for the latency table, got nothing; give output=FILE")
        for name, least in (("n_tokens", 1), ("n_repeats", 1), ("n_widths", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.pattern:
            n_kept, width = parse_pattern(self.pattern)
            self.sparsities = [(width - n_kept) / width]
        if not self.sparsities or any(not 0 < sparsity <= 1 for sparsity in self.sparsities):
            raise ConfigError(f"sparsities must lie in (0, 1], got {self.sparsities}; 0 is always measured")


ConfigStore.instance().store(name="latency_schema", node=LatencyConfig)


def measure(config: LatencyConfig) -> None:
    """Measures the table, writes it and shows it.

    Raises:
        SelfpruneError: on a user's mistake.
    """
    output = Path(config.output).expanduser()
    if not output.parent.is_dir():
        raise ConfigError(f"output={config.output} has no folder {output.parent} to be in; give a file in a folder that exists")
    with held_file(output, f"output={config.output} is being measured by another process; wait for it, or give another file"):
        _measure(config, output)


def _measure(config: LatencyConfig, output: Path) -> None:
    if output.exists():
        raise ConfigError(f"output={config.output} exists already; give a new file in a folder that exists")
    device = config.model.torch_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"model.device={device}, but torch sees no GPU here; give model.device=cpu")
    display = Display()
    with display.stage(f"reading the shapes of {config.model.path}"):
        skeleton = load_skeleton(config.model, *find_source(config.model))
        own_dtype = skeleton.config.get_text_config().dtype or torch.float32
        dtype = own_dtype if config.model.dtype is DType.AUTO else getattr(torch, config.model.dtype.value)
        units = list_units(skeleton) if config.items is Items.WEIGHTS else list_items(skeleton, list(MODULES))
    rows, outside = (_of_weights if config.items is Items.WEIGHTS else _of_structures)(config, display, skeleton, units, dtype)
    if config.items is Items.WEIGHTS:
        of_units = circumstances(weight_shapes(skeleton, units, config.n_tokens), dtype, device, config.n_tokens)
    else:
        of_units = circumstances(structure_shapes(units), dtype, device) | config.workload.as_dict()
    table = {
        "measured": {"model": config.model.path, **of_units, "pattern": config.pattern, "n_repeats": config.n_repeats},
        "kernels": {name: [[sparsity, kernel] for sparsity, _, kernel in of_name] for name, of_name in rows.items()},
        "seconds": {name: [[sparsity, seconds] for sparsity, seconds, _ in of_name] for name, of_name in rows.items()},
    }
    table |= {} if outside is None else {"seconds_outside": outside}
    write_whole(output, json.dumps(table, indent=2) + "\n", "measure again")
    sys.stdout.write("\n".join([*_lines(rows), "", str(output)]) + "\n")


def _of_structures(
    config: LatencyConfig, display: Display, skeleton: Any, units: tuple[Unit, ...], dtype: torch.dtype
) -> tuple[dict[str, Rows], float | None]:
    """The seconds of every sublayer at every width, and those besides."""
    n_widths, n_repeats = config.n_widths, config.n_repeats
    with display.stage(f"measuring a model {config.workload}"):
        found = structure_seconds(skeleton, units, config.workload, n_widths, dtype, config.model.torch_device(), n_repeats)
    rows = {name: [(sparsity, seconds, "dense") for sparsity, seconds in points] for name, points in found.points.items()}
    return rows, found.outside


def _of_weights(
    config: LatencyConfig, display: Display, skeleton: Any, units: tuple[Unit, ...], dtype: torch.dtype
) -> tuple[dict[str, Rows], float | None]:
    """The seconds of every shape of a matrix at every sparsity; nobody knows those besides."""
    shapes, device = unit_shapes(skeleton, units, config.n_tokens), config.model.torch_device()
    distinct = list(dict.fromkeys(shapes.values()))
    measured: dict[Shape, Rows] = {}
    with display.stage("measuring", total=len(distinct)) as update:
        for shape in distinct:
            measured[shape] = fastest_rows(shape, config.sparsities, config.pattern, dtype, device, config.n_repeats, config.seed)
            update(len(measured))
    return {name: measured[shape] for name, shape in shapes.items()}, None


def _lines(table: dict[str, Rows]) -> list[str]:
    """Milliseconds per unit and sparsity, with the kernel where it is not the dense one."""
    sparsities = sorted({sparsity for rows in table.values() for sparsity, _, _ in rows})
    cells = [["ms at sparsity", *(f"{sparsity:.3g}" for sparsity in sparsities)]]
    for name, rows in table.items():
        told = {at: f"{1e3 * seconds:.4g}{'' if kernel == 'dense' else ' ' + kernel}" for at, seconds, kernel in rows}
        cells.append([name, *(told.get(sparsity, "") for sparsity in sparsities)])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    padded = ([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])] for first, *others in cells)
    return ["  ".join(row) for row in padded]
