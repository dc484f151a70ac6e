"""What goes with which pruner."""

import math
from collections.abc import Mapping

from selfprune.allocations.budget import Budget, Measure
from selfprune.allocations.unit import Item
from selfprune.errors import ConfigError
from selfprune.proposers.base import ItemMeasurement, ProposerConfig
from selfprune.pruners.base import Pruner
from selfprune.recoveries.base import Recovery
from selfprune.recoveries.none import NoRecovery
from selfprune.training.schedule import Schedule


def check_context(budget: Budget, pruner: Pruner) -> None:
    """Checks that a budget counts a context only where heads may go.

    Raises:
        ConfigError: when it does so for single weights.
    """
    if budget.context and Item.WEIGHT in pruner.items():
        raise ConfigError(
            f"budget.context={budget.context} counts keys, values and scores of attention heads, but pruner={pruner.name} "
            "removes single weights, whose zeros change none of them; choose a pruner of heads and channels, such as pruner=obs, "
            "or another budget"
        )


def check_experts(budget: Budget, pruner: Pruner, recovery: Recovery) -> None:
    """Checks that experts, of which every token sees as many as before, are pruned for what they save.

    Raises:
        ConfigError: when a budget counts what tokens see, or a recovery is to mend what is left.
    """
    if Item.EXPERT not in pruner.items():
        return
    if budget.measure in (Measure.FLOPS, Measure.LATENCY):
        raise ConfigError(
            f"budget.measure={budget.measure.name} counts what a token costs, but it is sent to as many experts as before, "
            "however many go; choose WEIGHTS, PARAMETERS or MEMORY"
        )
    if not isinstance(recovery, NoRecovery):
        raise ConfigError("a recovery mends what is left of a matrix, but experts go as a whole; choose recovery=none")


def check_cuts(schedule: Schedule, pruner: Pruner) -> None:
    """Checks that a pruning in several cuts can be made anew each time.

    Raises:
        ConfigError: when biases would make up for every cut on top of those of the one before, or experts go.
    """
    if schedule.n_cuts > 1 and (pruner.adds_biases or Item.EXPERT in pruner.items()):
        what = "biases of recovery=bias_compensation would add up" if pruner.adds_biases else "experts do not come back"
        raise ConfigError(
            f"schedule.n_cuts={schedule.n_cuts} lets what was cut come back before the next cut, but {what}; choose "
            "schedule=one_shot, or another pruner and recovery"
        )


def check_nothing_is_plain(is_plain: bool, pruner: Pruner) -> None:
    """Checks that no plain checkpoint is asked for, for a pruner of single weights.

    Raises:
        ConfigError: when it is.
    """
    if is_plain:
        raise ConfigError(
            f"search.plain=true ties the widths of blocks, but pruner={pruner.name} removes single weights, whose checkpoints "
            "load with stock transformers in any case; leave it out"
        )


def check_nothing_is_measured_of_items(pruner: Pruner, proposers: Mapping[str, ProposerConfig]) -> None:
    """Checks that no proposer compares heads and channels, for a pruner of single weights.

    Raises:
        ConfigError: when one does.
    """
    for name, method in proposers.items():
        if any(isinstance(measurement, ItemMeasurement) for measurement in method.measurements()):
            raise ConfigError(
                f"{name} compares heads and channels, but pruner={pruner.name} removes single weights; choose a pruner of heads "
                "and channels, such as pruner=flap, or leave it out"
            )


def check_pattern(budget: Budget, pruner: Pruner) -> None:
    """Checks that a pattern leaves enough to remove.

    Raises:
        ConfigError: when it does not.
    """
    fraction = pruner.level_fraction()
    if fraction is not None and budget.measure is Measure.WEIGHTS and budget.sparsity > fraction:
        most = math.floor(1e6 * fraction) / 1e6  # rounded to the nearest, two thirds would be refused again
        raise ConfigError(
            f"{pruner.level_option()} removes at most {most:g} of every unit, but budget.sparsity is {budget.sparsity:g}; give "
            f"budget.sparsity={most:g} or another pattern"
        )
