"""One run as a story: folder, model, splits, statistics, level store, search, winner, report."""

import datetime
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from typing_extensions import NotRequired, TypedDict

from selfprune.allocation import Allocation
from selfprune.calibration import prune_in_place
from selfprune.candidate import Candidate, Proposal, best
from selfprune.config import RunConfig, to_config
from selfprune.contest import hold_contest
from selfprune.coverage import Coverage
from selfprune.errors import SelfpruneError
from selfprune.evaluators.kl_divergence import KLDivergence
from selfprune.evaluators.perplexity import Perplexity
from selfprune.evaluators.windows import WindowEvaluator
from selfprune.export import save_checkpoint
from selfprune.proposers.base import ProposerConfig
from selfprune.pruned_checkpoint import PrunedCheckpoint
from selfprune.racing import Racer
from selfprune.recorded_files import Metrics, Score
from selfprune.report import print_table, write_report
from selfprune.resources import Resources, folder_bytes, peak_memory_bytes
from selfprune.results import Results, Spent
from selfprune.run_folder import hold_run_folder, opened, preflight
from selfprune.search import Progress, run_search
from selfprune.signals import naming_on_stop
from selfprune.swap_gradients import SwapGradients
from selfprune.workbench import Workbench, prepare

logger = logging.getLogger(__name__)


class Measured(TypedDict):
    """What the journal keeps of a row of the report; earlier versions kept no KL of single windows."""

    tasks: dict[str, Metrics]
    kl: Score
    window_kl: NotRequired[list[Score]]
    perplexity: Score
    warnings: NotRequired[list[str]]


def run_composed(composed: DictConfig, overrides: list[str], named: Path | None = None) -> Path:
    """Runs a composed config, or continues the run folder that its `resume` names.

    Args:
        composed: what Hydra composed.
        overrides: the command line's config overrides, kept for `resume`.
        named: the run folder where the config names none; `runs/<date and time>` when None. One that exists is not taken.

    Returns:
        the run folder.

    Raises:
        SelfpruneError: on a user's mistake.
        KeyboardInterrupt: with the run folder, when the user interrupts.
    """
    if not composed.resume:
        to_config(composed, RunConfig)  # a mistake in the config is told before a folder is made
    held = hold_run_folder(composed, named or Path(f"runs/{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"))
    with opened(held, composed, overrides) as recorded, naming_on_stop(str(held.folder)):
        config = to_config(recorded, RunConfig)
        return run(config, held.folder, preflight(config, held.folder))


def run(config: RunConfig, folder: Path, expected: Resources) -> Path:
    """Runs or continues a config in its folder.

    Args:
        config: the typed config.
        folder: the run folder, which holds `config.yaml` and `environment.json`.
        expected: memory and disk that the preflight came to.

    Returns:
        the folder, now with `report.md`, `report.json` and `model/`.
    """
    began = time.monotonic()
    bench = prepare(config, folder)
    yardsticks = {
        name: form.build(bench.space, config.seed, bench.language_model).ask(1)[0] for name, form in config.yardsticks.items()
    }
    seeds = list(yardsticks.values()) if config.search.race_yardsticks else []
    main = _search(bench, "main", config.proposer, config.search.max_tokens, seeds)
    if not best(main):
        raise SelfpruneError(
            f"no candidate of the search was scored to the end, so there is no winner; the reasons stand in "
            f"{folder / 'archive.jsonl'}"
        )
    contest = hold_contest(bench, best(main, config.search.n_finalists))
    spent = {"main": Spent(sum(c.n_tokens for c in main) + bench.n_sensitivity_tokens, bench.scorer.seconds)}
    winner = _on_all_windows(bench, contest.winner)
    leaders: dict[str, Candidate] = {}
    for name, control in config.controls.items():
        seconds_before = bench.scorer.seconds
        candidates = _search(bench, name, control, spent["main"].n_tokens)
        for leader in best(candidates):
            leaders[name] = leader
        if name not in leaders:
            bench.display.warn(
                f"the control {name} scored no candidate to the end with the {spent['main'].n_tokens:,} tokens that the main "
                "search spent, so it has no row in the report; raise search.max_tokens"
            )
        spent[name] = Spent(sum(c.n_tokens for c in candidates), bench.scorer.seconds - seconds_before)
    closed = {name: proposal.allocation for name, proposal in yardsticks.items() if proposal.allocation is not None}
    allocations: dict[str, Allocation] = {"dense": dict.fromkeys(bench.store.allocation, 0)} | closed
    allocations |= {name: leader.allocation for name, leader in leaders.items()} | {"winner": winner.allocation}
    rows = _measure_rows(bench, allocations)
    results = Results(
        rows,
        bench.archive.candidates,
        winner,
        contest,
        config.budget.measure,
        config.budget.sparsity,
        closed,
        config.evaluator.title,
        bench.space.grid,
        spent,
        bench.language_model,
        bench.splits.hashes,
        bench.loaded.tokenizer.convert_ids_to_tokens(list(bench.splits.start)),
        expected=replace(expected, seconds=bench.expected_seconds),
        measured=Resources(peak_memory_bytes(bench.loaded.device), folder_bytes(folder), time.monotonic() - began),
        calibration=bench.coverage.as_dict(),
        warnings=bench.display.warnings,
    )
    report = write_report(folder, results, bench.harness.describe(bench.loaded.tokenizer))
    if not config.search.levels.folder:
        shutil.rmtree(config.search.levels.path(folder), ignore_errors=True)
    print_table(report, folder)
    return folder


def _search(
    bench: Workbench, name: str, proposer: ProposerConfig, max_tokens: int, yardsticks: Sequence[Proposal] = ()
) -> list[Candidate]:
    config = replace(bench.config.search, max_tokens=max_tokens)
    with bench.display.stage(f"search: {name}", total=max_tokens) as update:

        def show(state: Progress) -> None:
            best_score = "none yet" if state.best_score is None else f"{state.best_score:.4f}"
            update(state.n_tokens, f"best {best_score}, {state.n_candidates} candidates, {state.n_tokens:,} tokens")

        # The arms of a search share gradients, but no search has another's for nothing.
        gradients = SwapGradients(bench.scorer)
        space = replace(bench.space, move_values=gradients)
        working = proposer.build(space, bench.config.seed, bench.language_model)
        racer = Racer(name, bench.scorer, config.ladder, bench.config.seed, bench.aspects)
        n_before = bench.n_sensitivity_tokens if name == "main" else 0
        candidates = run_search(working, racer, bench.archive, config, yardsticks, show, n_before, gradients)
    if doubt := bench.language_model.unanswered():
        bench.display.warn(doubt)
    return candidates


def _on_all_windows(bench: Workbench, winner: Candidate) -> Candidate:
    """The winner with its score on all search windows, for the report; no search pays for it."""
    if winner.n_windows == sum(bench.scorer.batch_sizes):
        return winner
    scores = bench.scorer.score("winner", winner.id, winner.allocation, range(bench.scorer.n_batches))
    values = [value for batch in scores.values() for value in batch]
    return replace(winner, score=math.fsum(values) / len(values), n_windows=len(values))


def _measure_rows(bench: Workbench, allocations: dict[str, Allocation]) -> list[dict[str, Any]]:
    """Prunes afresh for every row, sequentially, and measures on the report split; the winner is saved on the way."""
    bench.store.restore()
    bench.scorer.evaluator.forward.clear()
    loaded, config = bench.loaded, bench.config
    metrics = {"kl": KLDivergence(), "nll": Perplexity()}
    checkpoint = PrunedCheckpoint(loaded, bench.folder / "model", by_block=False)
    for paragraph in checkpoint.left_out:
        bench.display.warn(paragraph)
    rows = []
    with bench.display.stage("measuring on the report split", total=len(allocations)) as update:
        report = WindowEvaluator(metrics, loaded.model, loaded.blocks, bench.splits.report_NT, config.search.batch_size)

        def measure(name: str, allocation: Allocation) -> dict[str, Any]:
            bench.store.restore()
            coverage, doubts = Coverage(loaded), list[str]()
            if any(allocation.values()):
                batch_size = config.search.batch_size
                prune_in_place(loaded, bench.splits.calibration_NT, config.pruner, allocation, batch_size, coverage=coverage)
            if name == "winner":
                if not config.pruner.sees_weights_alone():
                    coverage.warn(doubts.append, "the final pruning of the winner", bench.coverage)
                save_checkpoint(checkpoint, bench.folder / "model")
            scores = report.evaluate(versions=[name] * len(loaded.blocks)).metrics
            means = {metric: math.fsum(values) / len(values) for metric, values in scores.items()}
            tasks = bench.harness.evaluate(loaded.model, loaded.tokenizer) if config.harness.tasks else {}
            kl = {"kl": means["kl"], "window_kl": scores["kl"]}
            return {**kl, "perplexity": math.exp(means["nll"]), "tasks": tasks, "warnings": doubts}

        for i, (name, allocation) in enumerate(allocations.items()):
            row = bench.journal.once({"row": name}, partial(measure, name, allocation), Measured)
            sparsity = bench.space.grid.sparsity(allocation)
            for doubt in row.pop("warnings", []):
                bench.display.warn(doubt)
            saved = bench.space.target.share(allocation) if bench.space.target else sparsity
            rows.append({"name": name, "sparsity": sparsity, "saved": saved, **row})
            update(i + 1, name)
    return rows
