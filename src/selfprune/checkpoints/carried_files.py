"""The files of a checkpoint besides its weights: which of them a pruned copy gets, unchanged, and which not and why."""

import fnmatch
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG = "config.json"
WRITTEN_ANEW = (CONFIG, "model.safetensors.index.json")
RECORD = "selfprune.json"
WEIGHTS = (
    "*.safetensors", "*.safetensors.index*.json", "*model*.bin", "*model*.bin.index*.json", "*.pt", "*.pth", "*.ckpt", "*.gguf",
    "*.ggml", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.npz", "*.tflite", "*.ot", "*.nemo",
)  # fmt: skip
"""Weights in a form that a pruning does not change, so that they would still be the dense ones."""
NO_PART = (".git", ".cache", ".huggingface", "__pycache__", ".ipynb_checkpoints")
"""Folders of version control, downloads and interpreters, which are no part of a checkpoint."""
MAX_FOLDER_BYTES, MAX_FOLDER_FILES = 100_000_000, 1_000
DTYPE_KEYS = ("dtype", "torch_dtype")


class CarriedFiles:
    """What a source folder holds besides the weights that are written anew.

    Links to files are followed, as those of the hub's cache must be; links to folders are not.

    Args:
        source: the folder of the checkpoint.
        target: the folder that gets the copies, which may lie inside the source.

    Attributes:
        files: path inside the folder -> where its content lies, config.json apart.
        left_out: path inside the folder -> why it is not copied.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self.source = source
        self.files: dict[str, Path] = {}
        self.left_out: dict[str, str] = {}
        read_anew = set(_names_of_read_weights(source))
        for path in sorted(source.iterdir()):
            if path.name in WRITTEN_ANEW or path.name in read_anew or path.name in NO_PART or _is_target(path, target):
                continue
            if path.is_dir():
                self._add_folder(path)
            elif reason := _obstacle(path):
                self.left_out[path.name] = reason
            else:
                self.files[path.name] = path

    @property
    def n_bytes(self) -> int:
        """Bytes of all copies."""
        return sum(path.stat().st_size for path in self.files.values())

    def copy(self, folder: Path, dtype: str) -> None:
        """Copies them, and writes a config.json that names the number format of the weights.

        Args:
            folder: where to.
            dtype: the format, such as `bfloat16`.

        Raises:
            OSError: when the disk is full or the folder cannot be written.
        """
        for name, path in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        (folder / CONFIG).write_bytes(_with_dtype((self.source / CONFIG).read_bytes(), dtype))

    def _add_folder(self, folder: Path) -> None:
        """Takes a folder as a whole or not at all."""
        found: dict[str, Path] = {}
        n_bytes = 0
        for path in _walk(folder):
            name = path.relative_to(self.source).as_posix()
            reason = "it holds another checkpoint" if path.name == CONFIG else _obstacle(path)
            n_bytes += 0 if reason else path.stat().st_size
            if not reason and (n_bytes > MAX_FOLDER_BYTES or len(found) >= MAX_FOLDER_FILES):
                reason = f"it holds more than {MAX_FOLDER_FILES:,} files or {MAX_FOLDER_BYTES / 1e6:.0f} MB"
            if reason:
                self.left_out[f"{folder.name}/"] = f"{reason} ({name})"
                return
            found[name] = path
        if folder.is_symlink():
            self.left_out[f"{folder.name}/"] = "it is a link to a folder"
            return
        self.files |= found


def _names_of_read_weights(source: Path) -> Iterator[str]:
    """The files of weights from which a model is loaded, and their index: what is pruned comes of them."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = source / f"{single}.index.json"
        if (source / single).exists():
            yield single
            return
        if index.exists():
            yield index.name
            try:
                yield from set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                yield from ()
            return


def _walk(folder: Path) -> Iterator[Path]:
    """All that is no folder below a folder; links to folders are given as they are."""
    if folder.is_symlink():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if path.name not in NO_PART:
                yield from _walk(path)
        else:
            yield path


def _obstacle(path: Path) -> str | None:
    """Why a file is not copied."""
    if path.name == RECORD:
        return "it is the record of an earlier pruning, and this one writes its own"
    if any(fnmatch.fnmatch(path.name.lower(), pattern) for pattern in WEIGHTS):
        return "it holds weights that were not read, which would still be dense"
    if not path.is_file():
        return "it is a link to what is gone" if path.is_symlink() else "it is no plain file"
    return None if os.access(path, os.R_OK) else "it may not be read"


def _is_target(path: Path, target: Path) -> bool:
    resolved = target.absolute()
    return path.absolute() in (resolved, *resolved.parents) and path.is_dir()


def _with_dtype(content: bytes, dtype: str) -> bytes:
    """A config.json that names another number format, unchanged where it names this one or none."""
    config: dict[str, Any] = json.loads(content)
    told = next((config[key] for key in DTYPE_KEYS if isinstance(config.get(key), str)), None)
    if told == dtype:
        return content
    config.setdefault(next((key for key in DTYPE_KEYS if key in config), DTYPE_KEYS[0]), None)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in DTYPE_KEYS:
            if key in part and part[key] == told:
                part[key] = dtype
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
