"""An ordinary install, not an editable one: the wheel carries all that a run reads."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What a command prints; fails with all that it said."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT, folder=folder)
    (built,) = folder.glob("selfprune-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_the_wheel_holds_every_file_of_the_package_and_of_conf(wheel):
    def files(folder: Path, inside: str) -> set[str]:
        listed = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return {f"{inside}/{name}" for name in listed if "__pycache__" not in name}

    expected = files(ROOT / "src" / "selfprune", inside="selfprune") | files(ROOT / "conf", inside="selfprune/conf")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


@pytest.mark.parametrize(
    "pattern",
    ["conf/config.yaml", "conf/experiment/smoke.yaml", "embedded/weights/model.safetensors", "embedded/weights/tokenizer.json",
     "proposers/prompted/prompts/*.txt"],
)  # fmt: skip
def test_an_install_has_what_a_run_reads(installed, pattern):
    assert list((installed / "selfprune").glob(pattern)) != []


def test_an_install_composes_its_configs_from_an_unrelated_folder(installed, tmp_path):
    environment = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    where = run(sys.executable, "-c", "import selfprune; print(selfprune.__file__)", folder=tmp_path, **environment)
    assert Path(where.strip()).is_relative_to(installed), "the repository's package was imported, not the wheel's"
    shown = run(sys.executable, "-m", "selfprune", "+experiment=smoke", "--cfg", "job", folder=tmp_path, **environment)
    assert "pruner:" in shown
    assert "experiment: smoke" not in shown, "there is no such group, so Hydra took it for a new key"
    assert list(tmp_path.iterdir()) == []
