"""What choices need a pruner of heads and channels."""

from collections.abc import Mapping

from selfprune.allocations.budget import Budget, Measure
from selfprune.allocations.unit import Item
from selfprune.errors import ConfigError
from selfprune.proposers.base import ItemMeasurement, ProposerConfig
from selfprune.pruners.base import Pruner
from selfprune.recoveries.base import Recovery
from selfprune.recoveries.none import NoRecovery


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
