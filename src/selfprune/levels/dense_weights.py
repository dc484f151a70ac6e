"""The dense weights of units while the model is pruned: copies in memory, or read from the checkpoint whenever they are needed.

A search changes a model's weights in place and must know what they were. A copy takes as much memory as they do; the checkpoint
that the model was loaded from holds them as well, and reading costs a copy from the system's cache of files, or from disk.

Shape suffixes: O out, I in.
"""

from pathlib import Path

import torch
from torch import Tensor

from selfprune.allocations.unit import Unit
from selfprune.checkpoints.source import AnySource, open_source
from selfprune.checkpoints.stored_tensors import StoredTensor
from selfprune.errors import ModelError


class DenseWeights:
    """Copies in memory.

    Attributes:
        is_lean: whether memory is saved at the price of time.
    """

    is_lean = False

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, unit: Unit, weight_OI: Tensor) -> None:
        """Learns the weight of a unit [O, I], which is not changed."""
        self._held[unit.name] = weight_OI.clone()

    def __getitem__(self, name: str) -> Tensor:
        """The weight of a unit [O, I], by its name. Not to be changed."""
        return self._held[name]


class StoredDenseWeights(DenseWeights):
    """Read from the checkpoint; of weights that it holds in another form, such as another number format, there are copies.

    Args:
        source: folder of the checkpoint, which stays as it is.

    Raises:
        ModelError: when it cannot be read tensor by tensor.
    """

    is_lean = True

    def __init__(self, source: Path) -> None:
        super().__init__()
        self._stored = open_source(source)
        self._found: dict[str, tuple[AnySource, bool, torch.device]] = {}
        self._stamps: dict[Path, tuple[int, int]] = {}

    def take(self, unit: Unit, weight_OI: Tensor) -> None:
        """Looks for the weight in the checkpoint, and copies it where it is not there bit by bit."""
        tensor = self._stored.get(f"{unit.matrix}.weight")
        if tensor is not None:
            stored = tensor.read().to(weight_OI.device)
            for is_transposed in (False, True):
                seen_OI = stored.T if is_transposed else stored
                if seen_OI.dtype == weight_OI.dtype and seen_OI.shape == weight_OI.shape and torch.equal(seen_OI, weight_OI):
                    self._found[unit.name] = tensor, is_transposed, weight_OI.device
                    if isinstance(tensor, StoredTensor):
                        self._stamps.setdefault(tensor.path, _stamp(tensor.path))
                    return
        super().take(unit, weight_OI)

    def __getitem__(self, name: str) -> Tensor:
        """The weight of a unit [O, I], by its name.

        Raises:
            ModelError: when the checkpoint was changed meanwhile.
        """
        if name not in self._found:
            return super().__getitem__(name)
        tensor, is_transposed, device = self._found[name]
        if isinstance(tensor, StoredTensor) and _stamp(tensor.path) != self._stamps[tensor.path]:
            raise ModelError(
                f"{tensor.path} was changed while a search read the dense weights from it (search.memory=LEAN); restore it and "
                "resume the run, or begin again with search.memory=WHOLE, which copies them"
            )
        weight = tensor.read().to(device)
        return weight.T if is_transposed else weight


def _stamp(path: Path) -> tuple[int, int]:
    """What tells whether a file is still the same; nothing where it is gone."""
    try:
        state = path.stat()
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns
