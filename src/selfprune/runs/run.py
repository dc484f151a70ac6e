"""One run as a story: preparation, yardsticks, searches, contest of the finalists, rows pruned afresh and measured, report."""

import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfprune.allocations.candidate import Candidate, Proposal, best
from selfprune.configs.config import RunConfig
from selfprune.errors import SelfpruneError
from selfprune.reports.report import print_table, write_report
from selfprune.reports.results import Results
from selfprune.runs.contest import hold_contest
from selfprune.runs.extension import extending_overrides
from selfprune.runs.main_and_controls import Searches
from selfprune.runs.preparation import PreparedRun, prepare
from selfprune.runs.rows.report_rows import Row, measure_rows, reported_allocations, tell_rows
from selfprune.runs.rows.row_measurer import RowMeasurer
from selfprune.runs.rows.trained_rows import train_rows
from selfprune.runs.rows.winner_speed import kept_per_token, winner_speed
from selfprune.search.search_config import SearchConfig
from selfprune.storage.disk import folder_bytes
from selfprune.timing.machine import peak_memory_bytes
from selfprune.timing.resources import Resources

logger = logging.getLogger(__name__)


def run(config: RunConfig, folder: Path, expected: Resources, stages: Sequence[SearchConfig]) -> Path:
    """Runs or continues a config in its folder.

    Args:
        config: the typed config.
        folder: the run folder, which holds `config.yaml` and `environment.json`.
        expected: memory and disk that the preflight came to.
        stages: the limits of every stage; one, unless the run was extended.

    Returns:
        the folder, now with `report.md`, `report.json` and `model/`.
    """
    began = time.monotonic()
    prepared = prepare(replace(config, search=stages[-1]), folder, expected)
    yardsticks = {
        name: form.build(prepared.space, config.seed, prepared.language_model).ask(1)[0]
        for name, form in config.yardsticks.items()
    }
    searches = Searches(prepared, list(yardsticks.values()) if config.search.race_yardsticks else [])
    measured: dict[str, Row] = {}
    # What was not measured of an earlier stage is measured of a later one instead.
    for limits in stages[:-1]:
        measured = _repeat_stage(prepared, searches, yardsticks, limits, measured)
    main = searches.go_on("main", stages[-1])
    if not best(main):
        raise SelfpruneError(
            f"no candidate of the search was scored to the end, so there is no winner; the reasons stand in "
            f"{folder / 'archive.jsonl'}"
        )
    contest = hold_contest(prepared, best(main, config.search.n_finalists))
    winner = _on_all_windows(prepared, contest.winner)
    leaders = searches.run_controls(stages[-1])
    for name in [name for name in config.controls if name not in leaders]:
        prepared.display.warn(
            f"the control {name} scored no candidate to the end with the {searches.spent['main'].n_tokens:,} tokens that the "
            "main search spent, so it has no row in the report; raise search.max_tokens"
        )
    closed = {name: proposal.allocation for name, proposal in yardsticks.items() if proposal.allocation is not None}
    reported = reported_allocations(prepared, yardsticks, leaders, winner)
    measurer = RowMeasurer.of(prepared)
    earlier, measured = measured, measure_rows(prepared, measurer, reported, measured)
    speed = winner_speed(prepared)
    measured |= train_rows(prepared, measurer, reported, earlier)
    results = Results(
        tell_rows(prepared, measured),
        prepared.archive.candidates,
        winner,
        contest,
        config.budget.measure,
        config.budget.sparsity,
        closed,
        config.evaluator.title,
        prepared.space.grid,
        searches.spent,
        prepared.language_model,
        prepared.splits.hashes,
        prepared.loaded.tokenizer.convert_ids_to_tokens(list(prepared.splits.start)),
        expected=prepared.expected,
        measured=Resources(peak_memory_bytes(prepared.loaded.device), folder_bytes(folder), time.monotonic() - began),
        n_parameters=prepared.loaded.n_parameters,
        kept_per_token=kept_per_token(prepared, winner.allocation),
        speed=speed,
        calibration=prepared.coverage.as_dict(),
        block_numbers=prepared.block_numbers,
        sensitivities=prepared.space.sensitivities,
        warnings=prepared.display.warnings,
    )
    report = write_report(folder, results, prepared.harness.describe(prepared.loaded.tokenizer), extending_overrides(stages))
    if not config.search.levels.folder:
        shutil.rmtree(config.search.levels.path(folder), ignore_errors=True)
    prepared.trackers.finish(report["rows"])
    print_table(report, folder)
    return folder


def _repeat_stage(
    prepared: PreparedRun,
    searches: Searches,
    yardsticks: dict[str, Proposal],
    limits: SearchConfig,
    measured: dict[str, Row],
) -> dict[str, Row]:
    """Takes the searches to the limits of an earlier stage; the rows that were measured at its end, or else before it."""
    winner, n_finalists = None, prepared.config.search.n_finalists
    main = searches.go_on("main", limits)
    with prepared.journal.recalling():
        if finalists := best(main, n_finalists):
            winner = _on_all_windows(prepared, hold_contest(prepared, finalists).winner)
    leaders = searches.run_controls(limits) if main else {}
    if winner:
        reported = reported_allocations(prepared, yardsticks, leaders, winner)
        measurer, earlier = RowMeasurer.of(prepared), measured
        measured = measure_rows(prepared, measurer, reported, measured, is_repeated=True)
        measured |= train_rows(prepared, measurer, reported, earlier, is_repeated=True)
    return measured


def _on_all_windows(prepared: PreparedRun, winner: Candidate) -> Candidate:
    """The winner with its score on all search windows, for the report; no search pays for it."""
    if winner.n_windows == prepared.scorer.n_windows:
        return winner
    scores = prepared.scorer.score("winner", winner.id, winner.allocation, range(prepared.scorer.n_windows))
    return replace(winner, score=math.fsum(scores.values()) / len(scores), n_windows=len(scores))
