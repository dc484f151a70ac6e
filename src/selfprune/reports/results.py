"""What a run hands to its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfprune.allocations.budget import Measure
from selfprune.allocations.candidate import Candidate
from selfprune.allocations.level_grid import LevelGrid
from selfprune.allocations.unit import Allocation
from selfprune.language_models.recorded import RecordingLanguageModel
from selfprune.search.sign_test import Verdict
from selfprune.timing.resources import Resources


@dataclass(frozen=True)
class Spent:
    """What one search cost.

    Attributes:
        n_tokens: tokens of evaluation.
        seconds: of evaluation.
        ending: why it ended, as the end of a sentence.
    """

    n_tokens: int
    seconds: float
    ending: str = ""


@dataclass(frozen=True)
class Contest:
    """How the winner was chosen.

    Attributes:
        finalists: of the main search, the best search score first.
        verdict: on their answers to the documents of lm-eval's search tasks.
    """

    finalists: Sequence[Candidate]
    verdict: Verdict

    @property
    def winner(self) -> Candidate:
        """The finalist that won."""
        return self.finalists[self.verdict.chosen]


@dataclass(frozen=True)
class Results:
    """All that the report is made from.

    Attributes:
        rows: one per reported allocation: name, sparsity, saved, kl, window_kl (missing in journals of earlier versions),
            perplexity, tasks.
        candidates: the whole archive.
        winner: of the main search.
        contest: how it was chosen.
        measure: what the budget is a share of.
        sparsity: the budget's target.
        yardsticks: name -> allocation.
        score_title: what the search minimised, with its unit.
        grid: units and levels.
        spent: search -> its cost.
        language_model: the recorder of its calls.
        hashes: split -> hash.
        window_start: the tokens that every window begins with, as the tokenizer spells them.
        expected: what the run was thought to take before it began.
        measured: what it took; after a resume, the time since then.
        n_parameters: of the dense model.
        kept_per_token: numbers that the KV caches of winner and dense model keep of a token; None where nothing is cut.
        speed: what both take for a workload, for JSON; empty where it was not measured.
        calibration: the tokens that reached the units, for JSON.
        block_numbers: what was measured of the dense model's blocks -> block -> number.
        sensitivities: unit -> what pruning it alone cost; empty where that was not measured.
        warnings: what makes the results doubtful, a paragraph each.
    """

    rows: list[dict[str, Any]]
    candidates: Sequence[Candidate]
    winner: Candidate
    contest: Contest
    measure: Measure
    sparsity: float
    yardsticks: dict[str, Allocation]
    score_title: str
    grid: LevelGrid
    spent: dict[str, Spent]
    language_model: RecordingLanguageModel
    hashes: dict[str, str]
    window_start: list[str]
    expected: Resources
    measured: Resources
    n_parameters: int
    kept_per_token: tuple[int, int] | None
    speed: list[dict[str, Any]]
    calibration: dict[str, Any]
    block_numbers: Mapping[str, Mapping[int, float]]
    sensitivities: Mapping[str, float]
    warnings: Sequence[str] = ()
