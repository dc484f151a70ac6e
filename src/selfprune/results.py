"""What a run hands to its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfprune.allocation import LevelGrid
from selfprune.candidate import Candidate
from selfprune.language_models.recorded import RecordingLanguageModel
from selfprune.resources import Resources


@dataclass(frozen=True)
class Spent:
    """What one search cost.

    Attributes:
        n_tokens: tokens of evaluation.
        seconds: of evaluation.
    """

    n_tokens: int
    seconds: float


@dataclass(frozen=True)
class Results:
    """All that the report is made from.

    Attributes:
        rows: one per reported allocation: name, sparsity, kl, perplexity, tasks.
        candidates: the whole archive.
        winner: of the main search.
        grid: units and levels.
        spent: search -> its cost.
        language_model: the recorder of its calls.
        hashes: split -> hash.
        window_start: the tokens that every window begins with, as the tokenizer spells them.
        expected: what the run was thought to take before it began.
        measured: what it took; after a resume, the time since then.
        calibration: the tokens that reached the units, for JSON.
        warnings: what makes the results doubtful, a paragraph each.
    """

    rows: list[dict[str, Any]]
    candidates: Sequence[Candidate]
    winner: Candidate
    grid: LevelGrid
    spent: dict[str, Spent]
    language_model: RecordingLanguageModel
    hashes: dict[str, str]
    window_start: list[str]
    expected: Resources
    measured: Resources
    calibration: dict[str, Any]
    warnings: Sequence[str] = ()
