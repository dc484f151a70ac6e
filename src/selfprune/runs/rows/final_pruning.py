"""Pruning for good: every row of the report from the dense model, and the winner written as a checkpoint."""

from selfprune.allocations.unit import Allocation
from selfprune.exports.save import save_checkpoint
from selfprune.models.blocks.walk import windows_per_pass
from selfprune.pruning.sequential import prune_in_place
from selfprune.runs.preparation import PreparedRun
from selfprune.statistics.coverage import Coverage


def prune_afresh(prepared: PreparedRun, allocation: Allocation) -> Coverage:
    """Prunes the dense model block by block, by the method itself.

    Args:
        prepared: what is shared; its model is changed in place.
        allocation: what goes.

    Returns:
        the calibration tokens that reached each unit.
    """
    prepared.store.restore()
    coverage = Coverage(prepared.loaded)
    if any(allocation.values()):
        windows_NT = prepared.splits.calibration_NT
        n_at_once = windows_per_pass(windows_NT.shape[1])
        prune_in_place(prepared.loaded, windows_NT, prepared.config.method, allocation, n_at_once, coverage=coverage)
    return coverage


def save_winner(prepared: PreparedRun, coverage: Coverage) -> list[str]:
    """Writes the model as it stands to `model`, and removes an older report, which would speak of another one.

    Args:
        prepared: what is shared; its model holds the winner.
        coverage: the calibration tokens that reached its units.

    Returns:
        doubts about it, a paragraph each.
    """
    doubts: list[str] = []
    if not prepared.config.method.sees_weights_alone():
        coverage.warn(doubts.append, "the final pruning of the winner", prepared.coverage)
    (prepared.folder / "report.json").unlink(missing_ok=True)
    save_checkpoint(prepared.checkpoint, prepared.folder / "model")
    return doubts
