"""Finds the tensors of a Hugging Face checkpoint on disk."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from selfprune.checkpoints.stored_tensors import BitmaskedTensor, StoredTensor
from selfprune.errors import ModelError
from selfprune.storage import recorded_files

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FETCH_AGAIN = "fetch the checkpoint again"
BITMASK_PARTS = (".bitmask", ".compressed", ".shape")


class _Index(TypedDict):
    """What is read of the index of shards; there is more."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


class Checkpoint:
    """The tensors of a checkpoint by their names on disk.

    Args:
        folder: with config.json and safetensors files, sharded or not; a model's folder in the hub's cache will do.

    Raises:
        ModelError: when there is no such checkpoint, or when it is not whole.

    Example:
        >>> checkpoint = Checkpoint(Path("runs/mine/model"))
        >>> checkpoint.tensors["model.norm.weight"].shape
        (256,)

    Attributes:
        folder: where config.json lies.
        config: the content of config.json.
        tensors: name -> tensor; bitmasked weights have the names of the dense ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = _find_snapshot(folder)
        self.config = read_json(self.folder / "config.json")
        stored = open_tensors(self.folder)
        self.tensors: dict[str, StoredTensor | BitmaskedTensor] = {}
        for name, tensor in stored.items():
            stem, _, part = name.rpartition(".")
            is_bitmasked = all(stem + other in stored for other in BITMASK_PARTS)
            if not is_bitmasked or part not in ("compressed", "bitmask", "shape", "row_offsets"):
                self.tensors[name] = tensor
            elif part == "compressed":
                bitmask, shape = stored[f"{stem}.bitmask"], stored[f"{stem}.shape"].read()
                weight = BitmaskedTensor(f"{stem}.weight", tuple(shape.flatten().tolist()), tensor.dtype, bitmask, tensor)
                self.tensors[weight.name] = weight


def _find_snapshot(folder: Path) -> Path:
    """The folder of config.json: the given one, or the snapshot in the hub's cache that `main` points to."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ModelError(f"{folder} must be the folder of a Hugging Face checkpoint, found {found}; give the folder itself")
    if (folder / "config.json").is_file():
        return folder
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        snapshots = [path for path in snapshots if path.name == main.read_text(encoding="utf-8").strip()] or snapshots
    if len(snapshots) > 1:
        raise ModelError(
            f"{folder} holds {len(snapshots)} snapshots and no refs/main that names one; give one of them, such as {snapshots[0]}"
        )
    if not snapshots or not (snapshots[0] / "config.json").is_file():
        raise ModelError(
            f"{snapshots[0] if snapshots else folder} holds no config.json, so it is no Hugging Face checkpoint; give the folder "
            "that `save_pretrained` wrote or a model's folder in the hub's cache"
        )
    return snapshots[0]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a checkpoint.

    Raises:
        ModelError: when it cannot be read or holds something else.
    """
    return recorded_files.read_json(path, dict[str, Any], FETCH_AGAIN, ModelError)


def read_weight_map(path: Path) -> dict[str, str]:
    """Tensor -> file, as an index tells it.

    Raises:
        ModelError: when it tells something else.
    """
    shard_of = recorded_files.read_json(path, _Index, FETCH_AGAIN, ModelError, extra=True)["weight_map"]
    elsewhere = [shard for shard in shard_of.values() if Path(shard).name != shard]
    if elsewhere:
        raise ModelError(f"{path} should name shards in its own folder, got {elsewhere[0]!r}; {FETCH_AGAIN}")
    return shard_of


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Name -> tensor, of one file or of all the shards that an index names.

    Raises:
        ModelError: when there is none, or when it is not whole.
    """
    single = _single_file(folder)
    if single is not None:
        return open_file(single)
    shard_of = read_weight_map(folder / INDEX)
    shards = {shard: open_file(folder / shard) for shard in sorted(set(shard_of.values()))}
    lost = [name for name, shard in shard_of.items() if name not in shards[shard]]
    if lost:
        raise ModelError(
            f"{folder / INDEX} promises {len(lost)} tensors that their shards lack, such as {lost[0]} in {shard_of[lost[0]]}; "
            "index and shards come from different checkpoints, so fetch both again"
        )
    return {name: shards[shard][name] for name, shard in shard_of.items()}


def _single_file(folder: Path) -> Path | None:
    """The only file of weights; None where there is an index of shards."""
    names = sorted(path.name for path in folder.iterdir())
    unindexed = [name for name in names if name.endswith(".safetensors")]
    if SINGLE in names:
        return folder / SINGLE
    if INDEX in names:
        return None
    if len(unindexed) == 1:
        return folder / unindexed[0]
    if unindexed:
        raise ModelError(
            f"{folder} holds {len(unindexed)} safetensors files ({unindexed[0]}, ...) but no {INDEX} that says which belong "
            "together; fetch the index too"
        )
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth")) and not name.startswith("training_args")]
    if pickled:
        raise ModelError(
            f"{folder} keeps its weights in {pickled[0]}, a pickle, which can only be read as a whole and may run code; expected "
            "safetensors. Convert it once: load it with AutoModelForCausalLM.from_pretrained, write it with "
            "save_pretrained(<new folder>), and inspect the new folder"
        )
    raise ModelError(f"{folder} holds no weights: expected {SINGLE}, or {INDEX} and its shards; fetch them too")


def open_file(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of one file.

    Raises:
        ModelError: when it is gone or cut short.
    """
    if not path.is_file():
        found = "a link to a file that is gone" if os.path.islink(path) else "no such file"
        raise ModelError(f"the weights of {path.parent} are not whole: {path.name} is needed, found {found}; fetch it again")
    try:
        with safe_open(path, framework="np"), path.open("rb") as file:  # safetensors checks that the header fits the file
            n_header = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(n_header))
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is no whole safetensors file ({error}); it was cut short, or is a pointer of git-lfs in its stead, so fetch "
            "it again"
        ) from error
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(name, tuple(told["shape"]), told["dtype"], path, 8 + n_header + told["data_offsets"][0])
        for name, told in header.items()
    }
