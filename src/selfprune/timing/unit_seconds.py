"""How long the units of a model take at several sparsities, by the fastest kernel that torch has for each.

Only shapes matter: the weights are random. Limits: each product is measured alone, with warm caches.

Shape suffixes: O out, I in, T tokens, R comparison rows, W width of a comparison row.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

from selfprune.allocations.budget import Budget, Measure
from selfprune.allocations.latency_table import Circumstances
from selfprune.allocations.unit import Item, Unit
from selfprune.errors import ConfigError
from selfprune.models.loading import LoadedModel
from selfprune.models.units import n_row_groups, token_share, weight_view
from selfprune.pruners.selection import lowest_round_robin, parse_pattern
from selfprune.timing.kernels import dense_product, median_seconds, sparse_products
from selfprune.timing.machine import machine_name
from selfprune.timing.structure_seconds import structure_shapes

Rows = list[tuple[float, float, str]]
"""Sparsity, seconds, and the fastest kernel."""


@dataclass(frozen=True)
class Shape:
    """What decides how long a unit takes.

    Attributes:
        n_out: rows of one of its matrices.
        n_in: columns.
        n_matrices: matrices that run: 1, or of fused experts those that the tokens reach; below 1 for one that few reach.
        n_tokens: tokens that each of them sees.
    """

    n_out: int
    n_in: int
    n_matrices: float
    n_tokens: int


def unit_shapes(skeleton: Any, units: tuple[Unit, ...], n_tokens: int) -> dict[str, Shape]:
    """Kind of unit -> shape; where the units of a kind differ, unit name -> shape.

    Args:
        skeleton: the model, with or without its weights.
        units: its units.
        n_tokens: tokens that are multiplied at once.

    Raises:
        ModelError: when the model does not say how many experts a token is sent to.
    """
    of_kind: dict[str, dict[str, Shape]] = defaultdict(dict)
    for unit in units:
        n_groups, share = n_row_groups(skeleton, unit), token_share(skeleton, unit)
        n_rows, n_in = weight_view(skeleton, unit).shape
        n_visits = float(n_tokens * share * n_groups)
        n_matrices = min(float(n_groups), n_visits)
        shape = Shape(n_rows // n_groups, n_in, n_matrices, max(1, round(n_visits / n_matrices)))
        of_kind[unit.kind][unit.name] = shape
    shapes: dict[str, Shape] = {}
    for kind, of_unit in of_kind.items():
        shapes |= of_unit if len(set(of_unit.values())) > 1 else {kind: next(iter(of_unit.values()))}
    return shapes


def weight_shapes(skeleton: Any, units: tuple[Unit, ...], n_tokens: int) -> dict[str, list[float]]:
    """As `unit_shapes`, in numbers: rows and columns of a matrix, matrices that run, and tokens that each of them sees."""
    return {name: [float(number) for number in astuple(shape)] for name, shape in unit_shapes(skeleton, units, n_tokens).items()}


def circumstances(
    shapes: dict[str, list[float]], dtype: torch.dtype, device: torch.device, n_tokens: int | None = None
) -> Circumstances:
    """What measured seconds depend on.

    Args:
        shapes: of the units.
        dtype: number format of weights and inputs.
        device: where they are multiplied.
        n_tokens: tokens that are multiplied at once; None where a whole model is timed.
    """
    of_tokens: Circumstances = {} if n_tokens is None else {"n_tokens": n_tokens}
    return {
        "machine": machine_name(device),
        "device": "cpu" if device.type == "cpu" else machine_name(device),
        "n_threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "dtype": str(dtype).removeprefix("torch."),
        **of_tokens,
        "shapes": shapes,
    }


def check_latency_table(budget: Budget, loaded: LoadedModel) -> list[str]:
    """Checks that a budget's latency table was measured for this model, and tells what remains doubtful, a paragraph each.

    Args:
        budget: of any measure; only LATENCY has a table.
        loaded: the model, on the device where it is pruned.

    Raises:
        ConfigError: when the table is of another machine, number format, number of tokens or shape.
    """
    if budget.measure is not Measure.LATENCY:
        return []
    table = budget.table()
    if loaded.units[0].item is Item.WEIGHT:
        n_tokens = budget.n_tokens or table.measured.get("n_tokens", 1) or 1
        here = circumstances(weight_shapes(loaded.model, loaded.units, n_tokens), loaded.model.dtype, loaded.device, n_tokens)
    else:
        here = circumstances(structure_shapes(loaded.units), loaded.model.dtype, loaded.device)
    if budget.machine:
        here["machine"] = budget.machine
    budget.check_table(table, here)
    return table.doubts(here)


def fastest_rows(
    shape: Shape,
    sparsities: Sequence[float],
    pattern: str,
    dtype: torch.dtype,
    device: torch.device,
    n_repeats: int,
    seed: int,
) -> Rows:
    """The seconds of the fastest kernel, dense and at every sparsity.

    Args:
        shape: of the unit.
        sparsities: in (0, 1].
        pattern: `N:M` that the zeros keep to; empty for none.
        dtype: number format of weights and inputs.
        device: where it runs.
        n_repeats: measurements, of which the median counts.
        seed: of the random weights.

    Raises:
        ConfigError: when the pattern does not divide the inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(shape.n_out, shape.n_in, generator=generator).to(device, dtype)
    input_TI = torch.randn(shape.n_tokens, shape.n_in, generator=generator).to(device, dtype)
    width = parse_pattern(pattern)[1] if pattern else shape.n_in
    if shape.n_in % width:
        raise ConfigError(f"pattern={pattern} needs inputs in groups of {width}, but a unit has {shape.n_in}")
    scores_RW = torch.rand(weight_OI.numel() // width, width, generator=generator)
    # zeros do not matter to the dense kernel, so measuring it again would only add noise that looks like a saving
    dense = median_seconds(dense_product(weight_OI, input_TI), device, n_repeats)
    rows: Rows = [(0.0, shape.n_matrices * dense, "dense")]
    for sparsity in sorted(set(sparsities)):
        goes_OI = lowest_round_robin(scores_RW, round(sparsity * weight_OI.numel())).reshape(weight_OI.shape)
        kernels = sparse_products(weight_OI.masked_fill(goes_OI.to(device), 0), input_TI)
        seconds = {name: median_seconds(product, device, n_repeats) for name, product in kernels.items()} | {"dense": dense}
        fastest = min(seconds, key=seconds.__getitem__)
        rows.append((sparsity, shape.n_matrices * seconds[fastest], fastest))
    return rows
