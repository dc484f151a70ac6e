"""The surroundings of a run: versions, machine, commit and command."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from typing_extensions import TypedDict

from selfprune.storage.recorded_files import Text, read_json

PACKAGES = (
    "selfprune",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "lm_eval",
    "hydra-core",
    "llguidance",
    "numpy",
)


class Environment(TypedDict):
    """What is read back of `environment.json`; there is more."""

    overrides: list[Text]
    python: Text
    packages: dict[str, Text | None]


def read_environment(folder: Path) -> Environment:
    """The surroundings in which a run was begun.

    Args:
        folder: of the run.

    Raises:
        ConfigError: when the file is missing or holds something else.
    """
    remedy = "restore it from a copy, or begin the run anew, in another run_folder"
    return read_json(folder / "environment.json", Environment, remedy, extra=True)


def describe_environment(overrides: list[str]) -> dict[str, Any]:
    """Versions, machine, commit and command, for `environment.json`; no user names, no environment variables.

    Args:
        overrides: the config overrides of the command line.
    """
    return {
        "overrides": overrides,
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "n_cpus": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, with `+` when it has changes; None for an ordinary install."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if not git("ls-files", "--error-unmatch", __file__):
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
