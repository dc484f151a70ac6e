"""The files that a model is loaded from: a folder, or what the hub gives."""

import logging
import pickle
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session, snapshot_download
from torch import Tensor
from transformers.utils.hub import cached_file

from selfprune.checkpoints.carried_files import WEIGHTS
from selfprune.checkpoints.reader import INDEX, SINGLE, open_file, read_weight_map
from selfprune.checkpoints.stored_tensors import DTYPES, StoredTensor
from selfprune.errors import ModelError

logger = logging.getLogger(__name__)

PICKLE = "pytorch_model.bin"
"""What `from_pretrained` reads where there is no safetensors file; beside it, an index of several."""
ANSWER_SECONDS = 5.0
"""How long the hub is waited for."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class PickledTensor:
    """A tensor of a pickle, mapped from its file.

    Attributes:
        name: in the file.
        tensor: its content.
    """

    name: str
    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""
        return NAMES.get(self.tensor.dtype, str(self.tensor.dtype))

    def read(self) -> Tensor:
        """The whole tensor, in memory of its own."""
        return self.tensor.clone(memory_format=torch.contiguous_format)


AnySource = StoredTensor | PickledTensor


def hub_is_reachable() -> bool:
    """Whether the hub answers at all; asked once in a process, because its own client retries for half a minute per file."""
    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    answered = threading.Event()

    def ask() -> None:
        # the client's errors are its HTTP library's, which changed between its versions
        with suppress(Exception):
            get_session().head(endpoint, timeout=ANSWER_SECONDS)
            answered.set()

    # No client bounds the time that a name server takes, which may be dropped by a firewall as well.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return answered.is_set()


@contextmanager
def out_of_cache_where_out_of_reach(*switched: Any) -> Iterator[None]:
    """While open, the hub's clients look into their cache alone, if the hub does not answer: they would retry for a minute.

    Args:
        switched: modules that hold a copy of `HF_HUB_OFFLINE`, besides the hub's own.
    """
    if constants.HF_HUB_OFFLINE or hub_is_reachable():
        yield
        return
    with ExitStack() as stack:
        for module in (constants, *switched):
            stack.callback(setattr, module, "HF_HUB_OFFLINE", module.HF_HUB_OFFLINE)
            module.HF_HUB_OFFLINE = True
        yield


def source_folder(path: str, options: dict[str, Any]) -> Path:
    """The folder of the checkpoint: a local one, or the snapshot in the hub's cache, to which its small files are fetched.

    Args:
        path: a folder or a hub id.
        options: what every `from_pretrained` takes.
    """
    if Path(path).is_dir():
        return Path(path)
    snapshot = Path(str(cached_file(path, "config.json", **options))).parent
    if not options["local_files_only"]:
        try:
            snapshot_download(path, revision=options["revision"], ignore_patterns=list(WEIGHTS))
        except Exception as error:  # the weights are here, and what else there is will be told
            logger.warning("not all files of %s could be fetched: %s", path, error)
    return snapshot


def open_source(folder: Path) -> dict[str, AnySource]:
    """Name -> tensor, of the very files that `from_pretrained` reads, whatever their index says of each.

    Raises:
        ModelError: when they are not whole, or in a form that can only be read as a whole.
    """
    for single, opened in ((SINGLE, open_file), (PICKLE, _open_pickle)):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return dict(opened(folder / single))
        if index.is_file():
            names = sorted(set(read_weight_map(index).values()))
            return {name: tensor for part in names for name, tensor in opened(folder / part).items()}
    raise ModelError(f"{folder} holds no weights: expected {SINGLE}, or {INDEX} and its shards; fetch them too")


def _open_pickle(path: Path) -> dict[str, PickledTensor]:
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        said = textwrap.shorten(str(error), 200)
        raise ModelError(f"{path} cannot be read tensor by tensor ({type(error).__name__}: {said})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} should hold tensors by name, got {type(content).__name__}; fetch the checkpoint again")
    return {name: PickledTensor(name, tensor) for name, tensor in content.items() if isinstance(tensor, Tensor)}
