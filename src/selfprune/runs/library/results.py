"""What the functions return."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from selfprune.allocations.archive import read_archive
from selfprune.allocations.candidate import Candidate
from selfprune.allocations.report_file import read_report, read_winner_sparsities
from selfprune.allocations.unit import Allocation
from selfprune.allocations.winners import read_winner
from selfprune.errors import ConfigError
from selfprune.models.loading import register_per_layer


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where everything of it lies; `report.html` there is to be looked at.
        report: what `report.json` holds.
        sparsities: unit -> the share of it that the winner removed.
        allocation: unit -> the items that the winner removed.
    """

    folder: Path
    report: dict[str, Any]
    sparsities: dict[str, float]
    allocation: Allocation

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """A run in its folder.

        Raises:
            ConfigError: when the folder holds no finished run.
        """
        expected = "the folder must be that of a finished run"
        return cls(folder, read_report(folder), read_winner_sparsities(folder), read_winner(folder, expected))

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Row of the report -> its numbers: `kl`, `perplexity`, `tasks`, `n_tokens`, `seconds`."""
        return {row["name"]: row for row in self.report["rows"]}

    @property
    def candidates(self) -> list[Candidate]:
        """All that was proposed, in order."""
        return read_archive(self.folder / "archive.jsonl")

    def window_kl(self) -> dict[str, list[float]]:
        """Row of the report -> its KL window by window, which the journal keeps."""
        lines = (self.folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.startswith('{"row"')]
        return {row["row"]: row["window_kl"] for row in rows}

    @property
    def layers(self) -> dict[str, Any]:
        """What was measured of units and blocks: `units`, `blocks`, `correlations`, `agreement`.

        Raises:
            ConfigError: when the report is of an earlier version, which lacks it.
        """
        if "layers" not in self.report:
            raise ConfigError(
                f"{self.folder / 'report.json'} should say what was measured of the layers, but earlier versions did not; "
                f"remove it, and `python -m selfprune resume={self.folder}` writes it again"
            )
        return dict(self.report["layers"])

    def load_model(self) -> tuple[Any, Any]:
        """The pruned model and its tokenizer."""
        return _load(self.folder / "model")


@dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Attributes:
        folder: its checkpoint.
        model: with `eval()`, in the number format of its checkpoint.
        tokenizer: that of the model that was pruned.
        removed: unit -> the items that were removed.
        sparsity: the share of all weights of units that was removed.
    """

    folder: Path
    model: Any
    tokenizer: Any
    removed: Allocation
    sparsity: float

    @classmethod
    def read(cls, folder: Path) -> "Pruned":
        """A checkpoint that was pruned here."""
        record = json.loads((folder / "selfprune.json").read_text(encoding="utf-8"))
        model, tokenizer = _load(folder)
        return cls(folder, model, tokenizer, record["removed"], record["sparsity"])


def _load(folder: Path) -> tuple[Any, Any]:
    register_per_layer(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model.eval(), AutoTokenizer.from_pretrained(folder)
