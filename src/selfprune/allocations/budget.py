"""What a pruned model must save: weights, parameters, FLOPs or measured seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from selfprune.allocations.latency_table import HOW_TO_MEASURE, Circumstances, LatencyTable
from selfprune.allocations.unit import Allocation, Unit, n_weights
from selfprune.errors import ConfigError
from selfprune.storage.path_fields import path_field

TOLERANCE = 1e-6
IN_WEIGHTS = "choose budget.measure=WEIGHTS, whose target is a share of the units' weights alone"
MEASURE_ANEW = "give a table of the kernels and the number of tokens that count"


class Measure(str, Enum):
    """What `budget.sparsity` is a share of.

    WEIGHTS: the weights of all units. PARAMETERS: all parameters of the model, embeddings and norms included, of which still
    only the units' weights can go. FLOPS: the multiplications and additions of the units' matrix products for one token,
    where fused experts count by the share of tokens that reaches them; attention scores and the output head, which is no
    unit, do not count. LATENCY: the units' seconds when dense, by a measured table.
    """

    WEIGHTS = "WEIGHTS"
    PARAMETERS = "PARAMETERS"
    FLOPS = "FLOPS"
    LATENCY = "LATENCY"


@dataclass
class Budget:
    """What is constrained, and how much of it must go.

    Attributes:
        sparsity: the share to be saved, above 0 and below 1.
        measure: what it is a share of.
        latency_table: for LATENCY, the file that `python -m selfprune.latency` wrote.
        n_tokens: for LATENCY, tokens at once that the table must be measured for; 0 takes the table's.
    """

    sparsity: float = 0.7
    measure: Measure = Measure.WEIGHTS
    latency_table: str = path_field()
    n_tokens: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise ConfigError(
                f"budget.sparsity must lie above 0 and below 1, got {self.sparsity}; 0.7 removes seven weights of ten"
            )
        if self.measure is Measure.LATENCY and not self.latency_table:
            raise ConfigError(f"budget.measure=LATENCY needs budget.latency_table, got none; {HOW_TO_MEASURE}")
        if self.n_tokens < 0 or (self.n_tokens and self.measure is not Measure.LATENCY):
            raise ConfigError(
                f"budget.n_tokens is the number of tokens that budget.latency_table was measured for, so it is at least 0 and "
                f"counts for budget.measure=LATENCY only, got {self.n_tokens} with {self.measure.name}; leave it out"
            )
        if self.measure is not Measure.LATENCY and self.latency_table:
            raise ConfigError(
                f"budget.latency_table={self.latency_table} counts for budget.measure=LATENCY only, got {self.measure.name}; "
                "leave it out or choose budget=latency"
            )

    def check(self) -> None:
        """Checks, before a model is loaded, that there is something to prune, and what is written in other files.

        Raises:
            ConfigError: when the sparsity is 0, or the latency table is none.
        """
        if not self.sparsity:
            raise ConfigError(
                "budget.sparsity=0 leaves nothing to prune, and so nothing to search; give a share above 0 and below 1, as in "
                "budget.sparsity=0.7, which removes seven weights of ten"
            )
        if self.measure is Measure.LATENCY:
            self.check_table(self.table(), {"n_tokens": self.n_tokens} if self.n_tokens else {})

    def check_table(self, table: LatencyTable, of_run: Circumstances) -> None:
        """Checks that a latency table was measured for a run like this.

        Args:
            table: the table.
            of_run: what is known of the run.

        Raises:
            ConfigError: when it was not.
        """
        if contradiction := table.contradiction(of_run):
            raise ConfigError(f"budget.latency_table={self.latency_table} {contradiction}; {HOW_TO_MEASURE}")

    def table(self) -> LatencyTable:
        """The latency table.

        Raises:
            ConfigError: when the file is none.
        """
        return LatencyTable.read(Path(self.latency_table).expanduser())

    def uniform_sparsity(self, units: Sequence[Unit], n_parameters: int) -> float:
        """The one sparsity of all units that meets the budget, apart from any grid.

        Args:
            units: the units.
            n_parameters: of the whole model, tied ones once.

        Raises:
            ConfigError: when there is none.
        """
        if self.measure in (Measure.WEIGHTS, Measure.FLOPS):
            return self.sparsity
        if self.measure is Measure.PARAMETERS:
            n_prunable = n_weights(units)
            if self.sparsity * n_parameters > n_prunable:
                raise self.refusal(n_prunable / n_parameters, IN_WEIGHTS)
            return self.sparsity * n_parameters / n_prunable
        table = self.table()
        table.check(units)
        dense = math.fsum(table.seconds(unit, 0.0) for unit in units)

        def saved(sparsity: float) -> float:
            return 1 - math.fsum(table.seconds(unit, sparsity) for unit in units) / dense

        if self.sparsity > saved(1.0):
            raise self.refusal(saved(1.0), MEASURE_ANEW)
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if saved(middle) < self.sparsity else (low, middle)
        return high if self.sparsity else 0.0

    def uniform(self, units: Sequence[Unit], n_parameters: int) -> Allocation:
        """The allocation that gives every unit the one sparsity that meets the budget; weights are rounded, not up.

        Args:
            units: the units.
            n_parameters: of the whole model, tied ones once.

        Raises:
            ConfigError: when there is none.
        """
        sparsity = self.uniform_sparsity(units, n_parameters)
        if self.measure is Measure.WEIGHTS:
            return {unit.name: round(sparsity * unit.n_items) for unit in units}
        return {unit.name: min(unit.n_items, whole_target(sparsity, unit.n_items)) for unit in units}

    def refusal(self, reachable: float, remedy: str) -> ConfigError:
        """What to say when no more than a share can be saved."""
        what = {
            Measure.WEIGHTS: "weights of the units",
            Measure.PARAMETERS: "parameters of the model, of which only the weights of the units can go",
            Measure.FLOPS: "operations in the units",
            Measure.LATENCY: "seconds of the units by budget.latency_table",
        }[self.measure]
        at_most = math.floor(1e4 * reachable) / 1e4
        return ConfigError(
            f"budget.sparsity={self.sparsity:g} with budget.measure={self.measure.name} asks to save that share of the {what}, "
            f"but at most {at_most:g} can be saved; lower budget.sparsity or {remedy}"
        )


def whole_target(share: float, n_all: int) -> int:
    """The least whole number that is the share of all, but for rounding."""
    return math.ceil(share * n_all - TOLERANCE)
