"""The rows of the report: every allocation pruned afresh and measured on the report split, the winner saved on the way."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from typing_extensions import NotRequired, TypedDict

from selfprune.allocations.candidate import Candidate, Proposal
from selfprune.allocations.unit import Allocation
from selfprune.exports.save import holds_checkpoint
from selfprune.runs.preparation import PreparedRun
from selfprune.runs.rows.aside import begin, measured_aside
from selfprune.runs.rows.row_measurer import RowMeasurer
from selfprune.runs.rows.saved_winner import save_winner
from selfprune.search.workers.executors import start_processes
from selfprune.storage.recorded_files import Metrics, Score


class Measured(TypedDict):
    """What the journal keeps of a row of the report; earlier versions kept no KL of single windows."""

    tasks: dict[str, Metrics]
    kl: Score
    window_kl: NotRequired[list[Score]]
    perplexity: Score
    warnings: NotRequired[list[str]]
    training: NotRequired[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A row of the report: what was pruned, and what was measured of it."""

    allocation: Allocation
    record: Measured


def reported_allocations(
    prepared: PreparedRun, yardsticks: dict[str, Proposal], leaders: dict[str, Candidate], winner: Candidate
) -> dict[str, Allocation]:
    """Name of a row -> its allocation; the winner's comes last."""
    allocations: dict[str, Allocation] = {"dense": dict.fromkeys(prepared.store.allocation, 0)}
    allocations |= {name: proposal.allocation for name, proposal in yardsticks.items() if proposal.allocation is not None}
    return allocations | {name: leader.allocation for name, leader in leaders.items()} | {"winner": winner.allocation}


def measure_rows(
    prepared: PreparedRun,
    measurer: RowMeasurer,
    allocations: dict[str, Allocation],
    before: dict[str, Row],
    is_repeated: bool = False,
) -> dict[str, Row]:
    """Prunes afresh for every row, sequentially, and measures on the report split; the winner is saved on the way.

    Args:
        prepared: what is shared.
        measurer: measures them.
        allocations: name of a row -> its allocation.
        before: the rows of an earlier stage, which are not measured again where their allocation is the same.
        is_repeated: whether only what was recorded is read back.

    Returns:
        these rows and, of those that were not recorded, the ones before.
    """
    prepared.scorer.bench.release()
    folder = prepared.folder / "model"
    for paragraph in prepared.checkpoint.left_out:
        prepared.display.warn(paragraph)
    rows = dict(before) if is_repeated else {}
    with prepared.display.stage("measuring on the report split", total=len(allocations)) as update:
        if not is_repeated:  # else nothing is measured
            _ = measurer.evaluator  # now, while the model is dense

        def measure(name: str) -> dict[str, Any]:
            if name != "winner":
                return _measure(measurer, allocations, name)
            doubts = save_winner(prepared, measurer.prune(allocations[name]))
            return {**measurer.measure(prepared.loaded), "warnings": doubts}

        kept = [name for name, allocation in allocations.items() if name in before and before[name].allocation == allocation]
        unknown = [name for name in allocations if name not in kept][prepared.journal.n_recorded - prepared.journal.n_recalled :]
        elsewhere = partial(_measure, measurer, allocations)
        search, device = prepared.config.search, prepared.loaded.device
        start = partial(start_processes, pool=search.pool, device=device, begin=begin, given=(elsewhere,))
        with (
            prepared.journal.recalling() if is_repeated else nullcontext(),
            # the winner, which comes last, is measured and saved by this process
            measured_aside(search.workers, start, measure, [] if is_repeated else unknown[::-1]) as measured,
        ):
            for i, (name, allocation) in enumerate(allocations.items()):
                if name in kept:
                    rows[name] = before[name]
                else:
                    rows[name] = Row(allocation, prepared.journal.once({"row": name}, partial(measured, name), Measured))
                update(i + 1, name)
        is_reused = "winner" in before and rows["winner"] is before["winner"]
        is_saved = holds_checkpoint(folder) and (not is_reused or (prepared.folder / "report.json").exists())
        if not is_repeated and not is_saved:
            save_winner(prepared, measurer.prune(allocations["winner"]))
    return rows


def _measure(measurer: RowMeasurer, allocations: dict[str, Allocation], name: str) -> dict[str, Any]:
    return {**measurer.row(allocations[name]), "warnings": []}


def tell_rows(prepared: PreparedRun, measured: dict[str, Row]) -> list[dict[str, Any]]:
    """The rows of the report, whose doubts are told."""
    rows = []
    for name, row in measured.items():
        for doubt in row.record.get("warnings", []):
            prepared.display.warn(doubt)
        record: dict[str, Any] = {key: value for key, value in row.record.items() if key != "warnings"}
        counted = row.record.get("training", {}).get("sparsity")
        sparsity = prepared.space.grid.sparsity(row.allocation) if counted is None else counted
        saved = prepared.space.target.share(row.allocation)
        rows.append({"name": name, "sparsity": sparsity, "saved": saved, **record})
    return rows
