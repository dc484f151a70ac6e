"""What a pruned model must save: weights, parameters, FLOPs, memory or measured seconds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from selfprune.allocations.latency_table import HOW_TO_MEASURE, Circumstances, LatencyTable
from selfprune.allocations.unit import Allocation, Unit, n_weights
from selfprune.errors import ConfigError
from selfprune.storage.path_fields import path_field

TOLERANCE = 1e-6
IN_WEIGHTS = "choose budget.measure=WEIGHTS, whose target is a share of the units' weights alone"
MEASURE_ANEW = "give a table of the kernels and the number of tokens that count"


@dataclass(frozen=True)
class ContextCosts:
    """What the tokens of a full context cost besides weights, of one sequence; all zero where no context is counted.

    Attributes:
        n_cached: numbers in the KV cache of the whole model.
        cached_per_item: unit name -> those that go with one item.
        scored_per_item: unit name -> operations of one more token's attention, its scores and the sums that they weigh, that go
            with one item.
    """

    n_cached: int = 0
    cached_per_item: Mapping[str, int] = field(default_factory=dict)
    scored_per_item: Mapping[str, int] = field(default_factory=dict)


NO_CONTEXT = ContextCosts()


class Measure(str, Enum):
    """What `budget.sparsity` is a share of.

    WEIGHTS: the weights of all units. PARAMETERS: all parameters of the model, embeddings and norms included, of which still
    only the units' weights can go. FLOPS: the multiplications and additions of the units' matrix products for one token,
    where fused experts count by the share of tokens that reaches them; of heads and channels also the attention scores at
    `budget.context`, where that is given; the output head, which is no unit, does not count. MEMORY: all parameters, and the keys
    and values of `budget.batch_size` sequences of `budget.context` tokens, in numbers of one format. LATENCY: the units' seconds
    when dense, by a measured table.
    """

    WEIGHTS = "WEIGHTS"
    PARAMETERS = "PARAMETERS"
    FLOPS = "FLOPS"
    MEMORY = "MEMORY"
    LATENCY = "LATENCY"


@dataclass
class Budget:
    """What is constrained, and how much of it must go.

    Attributes:
        sparsity: the share to be saved, above 0 and below 1.
        measure: what it is a share of.
        latency_table: for LATENCY, the file that `python -m selfprune.latency` wrote.
        machine: for LATENCY, the machine for which the table counts, as the table names it; this one when empty.
        n_tokens: for LATENCY of single weights, tokens at once that the table must be measured for; 0 takes the table's.
        speedup: for LATENCY, in place of `sparsity`: how many times as fast as the dense one the whole model must be.
        context: tokens of a sequence, for MEMORY, and for FLOPS where attention scores count.
        batch_size: sequences that are kept at once, for MEMORY.
    """

    sparsity: float = 0.7
    measure: Measure = Measure.WEIGHTS
    latency_table: str = path_field()
    machine: str = ""
    n_tokens: int = 0
    speedup: float = 0.0
    context: int = 0
    batch_size: int = 1

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
        if self.speedup and (self.measure is not Measure.LATENCY or self.speedup <= 1):
            raise ConfigError(
                "budget.speedup says how many times as fast the whole model must be, so it is above 1, as 1.5, and counts for "
                f"budget.measure=LATENCY only, got {self.speedup:g} with {self.measure.name}; leave it out or choose "
                "budget=latency"
            )
        if self.context < 0 or self.batch_size < 1 or (self.measure is Measure.MEMORY and not self.context):
            raise ConfigError(
                f"budget.measure={self.measure.name} counts the keys and values of budget.batch_size sequences of budget.context "
                f"tokens, got {self.batch_size} of {self.context}; give both as whole numbers from 1 on"
            )
        if self.context and self.measure not in (Measure.FLOPS, Measure.MEMORY):
            raise ConfigError(
                f"budget.context={self.context} counts for budget.measure=FLOPS and MEMORY only, got {self.measure.name}; leave "
                "it out"
            )
        for name in ("latency_table", "machine"):
            if self.measure is not Measure.LATENCY and (value := getattr(self, name)):
                raise ConfigError(
                    f"budget.{name}={value} counts for budget.measure=LATENCY only, got {self.measure.name}; leave it out or "
                    "choose budget=latency"
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

    def share(self, units: Sequence[Unit]) -> float:
        """The share that must be saved of what is measured; of the seconds of these units, where a speedup is asked for.

        Raises:
            ConfigError: when the latency table does not know the seconds of the whole model.
        """
        if not self.speedup:
            return self.sparsity
        table = self.table()
        if table.seconds_outside is None:
            raise ConfigError(
                f"budget.speedup={self.speedup:g} is that of the whole model, but budget.latency_table={self.latency_table} does "
                f"not say what the model takes outside its units; {HOW_TO_MEASURE}, with items=STRUCTURES for heads"
            )
        of_units = math.fsum(table.seconds(unit, 0.0) for unit in units)
        return (of_units + table.seconds_outside) * (1 - 1 / self.speedup) / of_units

    def uniform_sparsity(self, units: Sequence[Unit], n_parameters: int, costs: ContextCosts = NO_CONTEXT) -> float:
        """The one sparsity of all units that meets the budget, apart from any grid.

        Args:
            units: the units.
            n_parameters: of the whole model, tied ones once.
            costs: of the context, for MEMORY.

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
        if self.measure is Measure.MEMORY:
            of_units = n_weights(units) + self.batch_size * sum(costs.cached_per_item.get(u.name, 0) * u.n_items for u in units)
            n_all = n_parameters + self.batch_size * costs.n_cached
            if self.sparsity * n_all > of_units:
                raise self.refusal(of_units / n_all, IN_WEIGHTS)
            return self.sparsity * n_all / of_units
        table = self.table()
        table.check(units)
        dense = math.fsum(table.seconds(unit, 0.0) for unit in units)

        def saved(sparsity: float) -> float:
            return 1 - math.fsum(table.seconds(unit, sparsity) for unit in units) / dense

        share = self.share(units)
        if share > saved(1.0):
            raise self.refusal(saved(1.0), MEASURE_ANEW)
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if saved(middle) < share else (low, middle)
        return high if share else 0.0

    def uniform(self, units: Sequence[Unit], n_parameters: int, costs: ContextCosts = NO_CONTEXT) -> Allocation:
        """The allocation that gives every unit the one sparsity that meets the budget; weights are rounded, not up.

        Args:
            units: the units.
            n_parameters: of the whole model, tied ones once.
            costs: of the context, for MEMORY.

        Raises:
            ConfigError: when there is none.
        """
        sparsity = self.uniform_sparsity(units, n_parameters, costs)
        if self.measure is Measure.WEIGHTS:
            return {unit.name: round(sparsity * unit.n_items) for unit in units}
        return {unit.name: min(unit.n_items, whole_target(sparsity, unit.n_items)) for unit in units}

    def refusal(self, reachable: float, remedy: str) -> ConfigError:
        """What to say when no more than a share can be saved."""
        what = {
            Measure.WEIGHTS: "weights of the units",
            Measure.PARAMETERS: "parameters of the model, of which only the weights of the units can go",
            Measure.FLOPS: "operations in the units",
            Measure.MEMORY: "parameters and of the keys and values, of which only those of the units can go",
            Measure.LATENCY: "seconds of the units by budget.latency_table",
        }[self.measure]
        at_most = math.floor(1e4 * reachable) / 1e4
        if self.speedup:
            return ConfigError(
                f"budget.speedup={self.speedup:g} asks for more than can be saved: of the {what} at most {at_most:g} can go; "
                f"lower budget.speedup or {remedy}"
            )
        return ConfigError(
            f"budget.sparsity={self.sparsity:g} with budget.measure={self.measure.name} asks to save that share of the {what}, "
            f"but at most {at_most:g} can be saved; lower budget.sparsity or {remedy}"
        )


def whole_target(share: float, n_all: int) -> int:
    """The least whole number that is the share of all, but for rounding."""
    return math.ceil(share * n_all - TOLERANCE)
