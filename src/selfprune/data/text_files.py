"""Text files and folders of them."""

import codecs
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfprune.errors import DataError

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
NO_TEXT_SUFFIXES = (".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".pdf")
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def find_text_files(spec: str, split: str) -> list[Path]:
    """The file that a split names, or all text files below its folder, sorted.

    Raises:
        DataError: when there is none.
    """
    path = Path(spec).expanduser().resolve()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(
            f"data.{split}={spec}: there is no file or folder {path}; give a text file, or a folder of "
            f"{', '.join(TEXT_SUFFIXES)} files"
        )
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file())
    if not found:
        raise DataError(
            f"data.{split}={spec}: the folder holds no {', '.join(TEXT_SUFFIXES)} file; give one that does, or a single text file"
        )
    return found


def read_text_file(path: Path) -> str:
    """The text of a file, without a byte-order mark; the documents of a .jsonl file are joined by a blank line.

    A line whose text is null is no document.

    Raises:
        DataError: when it cannot be read, or is no text.
    """
    if path.suffix.lower() in NO_TEXT_SUFFIXES:
        raise DataError(
            f"{path} is no plain text; give {', '.join(TEXT_SUFFIXES)} (a .jsonl file holds one JSON object with a field "
            '"text" a line)'
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        with path.open("rb") as file:
            is_utf16 = file.read(2) in UTF16_MARKS
        remedy = (
            "it begins as UTF-16 does; convert it by iconv -f utf-16 -t utf-8" if is_utf16 else "convert it by iconv -t utf-8"
        )
        raise DataError(f"{path} must be UTF-8 text, but its byte {error.start} is not; {remedy}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if text.count("\0") > len(text) // 4:
        raise DataError(f"{path} must be UTF-8 text, but much of it is zero bytes, as of UTF-16 or binary data; convert it")
    # other separators than line feeds, such as U+2028, may stand within a document
    return text if path.suffix.lower() != ".jsonl" else "\n\n".join(_documents(path, text.split("\n")))


def _documents(path: Path, lines: list[str]) -> Iterator[str]:
    n_null = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: expected a JSON object, got {line[:80]!r}") from error
        document = document_of(row, "text", f"{path}, line {number}")
        if document is not None:
            yield document
        n_null += document is None
    if n_null:
        logger.info("%s: %d lines have no text (null)", path, n_null)


def document_of(row: Any, column: str, place: str) -> str | None:
    """The text of a row of a dataset; None where it is null. Halves of surrogate pairs, which are no characters, become U+FFFD.

    Args:
        row: the row, column -> value.
        column: the column of the text.
        place: where the row stands, for the error.

    Raises:
        DataError: when the row has no such column, or holds something else than text there.
    """
    if not isinstance(row, dict) or column not in row:
        held = f"one with {', '.join(map(repr, list(row)[:8])) or 'nothing'}" if isinstance(row, dict) else type(row).__name__
        raise DataError(f'{place}: expected an object with a field "{column}", got {held}; give the column that holds the text')
    document = row[column]
    if document is None:
        return None
    if not isinstance(document, str):
        raise DataError(
            f'{place}: the field "{column}" must be text or null, got {type(document).__name__}: {str(document)[:80]!r}'
        )
    return document if document.isascii() else document.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
