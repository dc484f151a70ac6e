"""The winner written as a checkpoint."""

from selfprune.exports.save import save_checkpoint
from selfprune.runs.preparation import PreparedRun
from selfprune.statistics.coverage import Coverage


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
