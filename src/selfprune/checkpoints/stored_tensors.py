"""Tensors of a checkpoint on disk, read piece by piece, so that one larger than the memory can be read.

Shape suffixes: O out, I in.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from selfprune.errors import ModelError

CHUNK_ITEMS = 2**24
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


def torch_dtype(name: str, dtype: str) -> torch.dtype:
    """The number format of a stored tensor.

    Args:
        name: of the tensor.
        dtype: as safetensors spells it.

    Raises:
        ModelError: when torch has none.
    """
    if dtype not in DTYPES:
        raise ModelError(f"the checkpoint holds {name} as {dtype}, which is none of the formats {', '.join(DTYPES)}; convert it")
    return DTYPES[dtype]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file, of which only the piece asked for is in memory.

    `safe_open` does not do for reading it: for torch it maps the file as if it were to be written, which Linux refuses for a file
    larger than the memory, and without a map it reads the whole tensor for any piece of it.

    Attributes:
        name: in the file.
        shape: of the whole tensor.
        dtype: as safetensors spells it, such as `BF16`.
        path: of the file.
        start: byte of the file at which the tensor begins.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    start: int

    @property
    def n_bytes(self) -> int:
        """Bytes that it takes in the file.

        Raises:
            ModelError: when torch has no such format.
        """
        return math.prod(self.shape) * torch_dtype(self.name, self.dtype).itemsize

    def read(self) -> Tensor:
        """The whole tensor.

        Raises:
            ModelError: when the file has become shorter, is gone, or holds numbers of a format that torch lacks.
        """
        tensor = torch.empty(self.shape, dtype=torch_dtype(self.name, self.dtype))
        # numpy knows no bfloat16, and a scalar has no bytes to view
        content = tensor.view(-1).view(torch.uint8).numpy().data
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                n_read = file.readinto(content)
        except OSError as error:
            raise ModelError(
                f"{self.path} can no longer be read ({error.strerror}); fetch the checkpoint and begin again"
            ) from error
        if n_read < len(content):
            raise self._cut_short()
        return tensor

    def pieces(self) -> Iterator[Tensor]:
        """Pieces along the first dimension; those of a matrix have a multiple of 8 rows, except the last.

        Raises:
            ModelError: when the file has become shorter.
        """
        n_rows, *row = self.shape or (1,)
        dtype, multiple = DTYPES[self.dtype], 8 if len(row) == 1 else 1
        row_bytes = torch.Size(row).numel() * dtype.itemsize
        step = max(1, CHUNK_ITEMS * dtype.itemsize // max(1, row_bytes) // multiple) * multiple
        with self.path.open("rb") as file:
            file.seek(self.start)
            for start in range(0, n_rows if row_bytes else 0, step):
                content = bytearray(min(step, n_rows - start) * row_bytes)
                if file.readinto(content) < len(content):
                    raise self._cut_short()
                yield torch.frombuffer(content, dtype=dtype).view(-1, *row)

    def _cut_short(self) -> ModelError:
        return ModelError(f"{self.path} ended within {self.name}; it was changed while it was read, so begin again")

    def nonzero(self) -> Iterator[Tensor]:
        """Pieces as in `pieces`, True where the weight is not zero."""
        for piece in self.pieces():
            yield piece != 0


@dataclass(frozen=True)
class BitmaskedTensor:
    """A weight in one of the sparse bitmask formats of compressed-tensors up to 0.14: bits of what is kept, and its values.

    Attributes:
        name: the name that the dense weight would have.
        shape: of the dense weight.
        dtype: of the values.
        bitmask: a bit per weight, the lowest first, each row filled up to whole bytes.
        values: the weights with a set bit, row by row; the 2:4 format keeps zeros among them in groups that have more than two.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bitmask: StoredTensor
    values: StoredTensor

    def nonzero(self) -> Iterator[Tensor]:
        """One piece, True where the weight is not zero.

        Raises:
            ModelError: when bits and values do not belong together.
        """
        bits = (self.bitmask.read().unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
        kept_OI = bits.flatten(-2)[..., : self.shape[-1]].bool()
        values = self.values.read().flatten()
        n_kept = int(kept_OI.count_nonzero())
        if tuple(kept_OI.shape) != self.shape or n_kept != len(values):
            raise ModelError(
                f"the bitmask of {self.name} sets {n_kept} bits for {len(values)} values and the shape {list(self.shape)}, "
                "which cannot be; the checkpoint is broken, fetch it again"
            )
        kept_OI[kept_OI.clone()] = values != 0
        yield kept_OI
