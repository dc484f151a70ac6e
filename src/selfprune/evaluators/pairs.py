"""A user's file of prompts and references as an lm-eval task: what the model writes after a prompt is compared with a reference.

Exact matches, white space at both ends aside, and chrF (Popović, 2015), by sacrebleu.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfprune.errors import DataError

if TYPE_CHECKING:
    from datasets import DatasetDict

NAME = "pairs"
"""Of the task, in the report."""
FIELDS = ("prompt", "reference")


def read_pairs(path: Path) -> list[dict[str, str]]:
    """The pairs of a file of JSON lines.

    Args:
        path: of the file; each line has `prompt` and `reference`.

    Raises:
        DataError: when it cannot be read, or a line is not of that form.
    """
    shape = "should hold lines such as " + json.dumps({"prompt": "English: good day. French:", "reference": "bonjour."})
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"harness.pairs={path} {shape}, but cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            pair = {name: str(json.loads(line)[name]) for name in FIELDS}
        except (ValueError, KeyError, TypeError):
            pair = {}
        if not pair or not all(text.strip() for text in pair.values()) or "\n" in pair["reference"].strip():
            raise DataError(
                f"harness.pairs={path} {shape}, with texts that are not empty and a reference of one line, but line {number} is "
                f"{line[:100]!r}; correct it"
            )
        pairs.append(pair)
    if not pairs:
        raise DataError(f"harness.pairs={path} {shape}, but holds none")
    return pairs


def pairs_task(path: Path, n_tokens: int) -> dict[str, Any]:
    """What lm-eval makes a task of.

    Args:
        path: of the file.
        n_tokens: that the model writes at most; it ends with the line.

    Raises:
        DataError: as of `read_pairs`.
    """
    pairs = read_pairs(path)

    def load(**_: Any) -> "DatasetDict":
        # Imported here because it takes seconds, and only a run of lm-eval needs it.
        from datasets import Dataset, DatasetDict

        return DatasetDict({"test": Dataset.from_list(pairs)})

    return {
        "task": NAME,
        "custom_dataset": load,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{reference.strip()}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": n_tokens, "do_sample": False},
        "filter_list": [
            {"name": "line", "filter": [{"function": "regex", "regex_pattern": r"^\s*(.*?)\s*$"}, {"function": "take_first"}]}
        ],
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
            {"metric": "chrf", "aggregation": "chrf", "higher_is_better": True},
        ],
        "metadata": {"version": 1.0},
    }
