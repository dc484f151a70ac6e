"""Text files and folders of them."""

import json
from pathlib import Path

from selfprune.errors import DataError

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")


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
    found = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
    if not found:
        raise DataError(
            f"data.{split}={spec}: the folder holds no {', '.join(TEXT_SUFFIXES)} file; give one that does, or a single text file"
        )
    return found


def read_text_file(path: Path) -> str:
    """The text of a file; the documents of a .jsonl file are joined by a blank line.

    Raises:
        DataError: when it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} must be UTF-8 text, but its byte {error.start} is not; convert it, for instance by iconv -t utf-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if path.suffix != ".jsonl":
        return text
    documents = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            documents += [str(json.loads(line)["text"])] if line.strip() else []
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f'{path}, line {number}: expected a JSON object with a field "text", got {line[:80]!r}') from error
    return "\n\n".join(documents)
