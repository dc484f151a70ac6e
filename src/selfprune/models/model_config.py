"""Which model to load, in which format, and where its weights lie."""

from dataclasses import dataclass
from enum import Enum

import torch

from selfprune.errors import ConfigError
from selfprune.storage.path_fields import path_field


class Placement(str, Enum):
    """Where the weights lie while they are used.

    WHOLE: all on `device`. SPREAD: dealt by accelerate over all GPUs, then main memory, then disk. STREAM: the blocks stay in the
    checkpoint on disk, and each is on `device` only while it is its turn.
    """

    WHOLE = "WHOLE"
    SPREAD = "SPREAD"
    STREAM = "STREAM"


class DType(str, Enum):
    """The number format that the weights are loaded in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    AUTO = "auto"


@dataclass
class ModelConfig:
    """Which model to load, and how.

    Attributes:
        path: `embedded` (the model inside this package), a local folder, or a hub id such as `meta-llama/Llama-2-7b-hf`.
        dtype: number format of the weights; AUTO takes the checkpoint's.
        device: `auto` (a GPU if there is one), or any torch device such as `cpu` or `cuda:1`.
        placement: whether the weights lie on that device as a whole; a model larger than memory needs STREAM.
        trust_remote_code: run the modelling code that a checkpoint brings along.
        revision: branch, tag or commit on the hub.
    """

    path: str = path_field("embedded", names=("embedded",), or_hub=True)
    dtype: DType = DType.FLOAT32
    device: str = "auto"
    placement: Placement = Placement.WHOLE
    trust_remote_code: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ConfigError(
                "model.path must be 'embedded', a folder or a hub id, got an empty text; leave it out for the embedded model"
            )
        try:
            self.torch_device()
        except RuntimeError as error:
            raise ConfigError(f"model.device must be auto, cpu, cuda or cuda:<number>, got {self.device!r}") from error

    def torch_device(self) -> torch.device:
        """The device, with `auto` decided."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)
