"""Texts of datasets on the hub: a few by name, any other spelt out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants

from selfprune.checkpoints.source import hub_is_reachable
from selfprune.data.text_files import document_of
from selfprune.errors import DataError, did_you_mean

REMEDY = (
    "check the name and the network, or download the text elsewhere and give "
    "data=files data.calibration=… data.search=… data.report=…"
)


@dataclass(frozen=True)
class HubText:
    """A text column of a dataset on the hub.

    Attributes:
        dataset: its id.
        config: its configuration, if it has several.
        split: the split for calibration and search.
        report_split: the split for the report.
        column: the column that holds the text.
        data_files: split -> file to read instead of the whole split.
        streaming: read only as much as is needed.
    """

    dataset: str
    config: str | None
    split: str
    report_split: str
    column: str = "text"
    data_files: dict[str, str] | None = None
    streaming: bool = True


HUB_TEXTS = {
    "c4": HubText(
        "allenai/c4",
        None,
        "train",
        "validation",
        data_files={"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"},
    ),
    "wikitext2": HubText("Salesforce/wikitext", "wikitext-2-raw-v1", "train", "test", streaming=False),
    "fineweb_edu": HubText("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", "train"),
}


def find_hub_text(spec: str) -> HubText:
    """A named text, or one spelt out as `dataset_id:config:split:column`, later parts optional.

    Raises:
        DataError: when it is neither.
    """
    if spec in HUB_TEXTS:
        return HUB_TEXTS[spec]
    if ":" not in spec and "/" not in spec:
        raise DataError(
            f"an unknown hub text {spec!r}; the known ones, nearest first: {did_you_mean(spec, HUB_TEXTS)}; others are written "
            "as dataset_id:config:split:column"
        )
    dataset, config, split, column, *_ = [*spec.split(":"), "", "", "", ""]
    return HubText(dataset, config or None, split or "train", split or "train", column or "text")


def check_hub_text(spec: str, split: str, whole: bool) -> HubText:
    """Finds a text, and checks that the hub answers, before anything else is read.

    Args:
        spec: a named text, or one spelt out.
        split: which of our splits wants it.
        whole: refuse a text that can only be read as a stream.

    Raises:
        DataError: when the text is unknown or out of reach, or would have to be read as a whole and cannot.
    """
    hub_text = find_hub_text(spec)
    if whole and hub_text.streaming:
        raise DataError(
            f"data.n_report=0 takes the whole report text, but {spec} is read as a stream; give data.n_report of at least 1"
        )
    if not constants.HF_HUB_OFFLINE and not hub_is_reachable():
        raise DataError(
            f"data.{split}={spec} lies on the hub, which does not answer; {REMEDY}; with HF_HUB_OFFLINE=1 a cached copy is used"
        )
    return hub_text


def read_hub_text(spec: str, split: str, n_characters: int, whole: bool) -> str:
    """Rows joined by a blank line, as the reference measures WikiText-2; of a streamed text only its beginning.

    Args:
        spec: a named text, or one spelt out.
        split: which of our splits wants it; the report has a split of the dataset of its own.
        n_characters: how much of a streamed text is read, to the next whole row.
        whole: refuse a text that can only be read as a stream.

    Raises:
        DataError: when the text is unknown, out of reach or cannot be read.
    """
    import datasets  # here, because it takes a second that only a hub run should pay

    hub_text = check_hub_text(spec, split, whole)
    name = hub_text.report_split if split == "report" else hub_text.split
    try:
        rows = datasets.load_dataset(
            hub_text.dataset, hub_text.config, split=name, data_files=hub_text.data_files, streaming=hub_text.streaming
        )
        return join_rows(rows, hub_text.column, n_characters if hub_text.streaming else None, f"data.{split}={spec}")
    except DataError:
        raise
    except Exception as error:  # the client raises anything here, from ValueError to its HTTP library's errors
        said = " ".join(str(error).split())[:300]
        raise DataError(
            f"data.{split}={spec} could not be read from the hub ({type(error).__name__}: {said}); {REMEDY}"
        ) from error


def join_rows(rows: Iterable[dict[str, Any]], column: str, n_characters: int | None, name: str) -> str:
    """Texts joined by a blank line; null is no text.

    Args:
        rows: column -> value.
        column: the column that holds the text.
        n_characters: how much is read, to the next whole row; None reads all.
        name: what the rows are, for the error.

    Raises:
        DataError: when a row lacks the column, or holds something else than text there.
    """
    documents, length = [], 0
    for number, row in enumerate(rows, start=1):
        document = document_of(row, column, f"{name}, row {number}")
        if document is None:
            continue
        documents.append(document)
        length += len(document) + 2
        if n_characters is not None and length >= n_characters:
            break
    return "\n\n".join(documents)
