"""Measures the seconds of a model's units on this machine, for `budget.measure=LATENCY`.

Only the shapes of the model are read; the weights are random. Limits: each product is measured alone, with warm caches, so the
table knows nothing of attention, of the head, and of kernels that a serving engine brings along.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hydra.core.config_store import ConfigStore

from selfprune.errors import ConfigError
from selfprune.models.loading import find_source, load_skeleton
from selfprune.models.model_config import DType, ModelConfig
from selfprune.models.units import list_units
from selfprune.pruners.selection import parse_pattern
from selfprune.runs.display import Display
from selfprune.storage.lock import held_file
from selfprune.storage.path_fields import path_field
from selfprune.storage.whole_files import write_whole
from selfprune.timing.unit_seconds import Rows, Shape, circumstances, fastest_rows, unit_shapes


@dataclass
class LatencyConfig:
    """What is measured.

    Attributes:
        model: whose shapes, in which number format and on which device.
        output: the JSON file to write, which must not exist.
        n_tokens: tokens that are multiplied at once: a few when a model writes, many when it reads.
        sparsities: where to measure besides 0; ignored under a pattern, which knows only one.
        pattern: `N:M`, as the pruner's; empty for none.
        n_repeats: measurements, of which the median counts.
        seed: of the random weights.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    output: str = path_field()
    n_tokens: int = 128
    sparsities: list[float] = field(default_factory=lambda: [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
    pattern: str = ""
    n_repeats: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.output:
            raise ConfigError("output must name the file for the latency table, got nothing; give output=FILE")
        for name in ("n_tokens", "n_repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
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
        shapes = unit_shapes(skeleton, list_units(skeleton), config.n_tokens)
    own_dtype = skeleton.config.get_text_config().dtype or torch.float32
    dtype = own_dtype if config.model.dtype is DType.AUTO else getattr(torch, config.model.dtype.value)
    distinct = list(dict.fromkeys(shapes.values()))
    measured: dict[Shape, Rows] = {}
    with display.stage("measuring", total=len(distinct)) as update:
        for shape in distinct:
            measured[shape] = fastest_rows(shape, config.sparsities, config.pattern, dtype, device, config.n_repeats, config.seed)
            update(len(measured))
    rows = {name: measured[shape] for name, shape in shapes.items()}
    table = {
        "measured": {
            "model": config.model.path,
            **circumstances(shapes, dtype, device, config.n_tokens),
            "pattern": config.pattern,
            "n_repeats": config.n_repeats,
        },
        "kernels": {name: [[sparsity, kernel] for sparsity, _, kernel in of_name] for name, of_name in rows.items()},
        "seconds": {name: [[sparsity, seconds] for sparsity, seconds, _ in of_name] for name, of_name in rows.items()},
    }
    write_whole(output, json.dumps(table, indent=2) + "\n", "measure again")
    sys.stdout.write("\n".join([*_lines(rows), "", str(output)]) + "\n")


def _lines(table: dict[str, Rows]) -> list[str]:
    """Milliseconds per unit and sparsity, with the kernel where it is not the dense one."""
    sparsities = [sparsity for sparsity, _, _ in next(iter(table.values()))]
    cells = [["ms at sparsity", *(f"{sparsity:g}" for sparsity in sparsities)]]
    for name, rows in table.items():
        cells.append([name, *(f"{1e3 * seconds:.4g}{'' if kernel == 'dense' else ' ' + kernel}" for _, seconds, kernel in rows)])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    padded = ([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])] for first, *others in cells)
    return ["  ".join(row) for row in padded]
