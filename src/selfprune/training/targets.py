"""What a metric knows of the dense model's answers to all windows of a training: computed once, and kept on disk.

Shape suffixes: N windows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfprune.errors import ConfigError
from selfprune.evaluators.window_metrics.base import WindowMetric
from selfprune.storage.disk import free_bytes
from selfprune.storage.whole_files import RESUME_A_RUN, disk_error


@dataclass(frozen=True)
class Targets:
    """Per window what the metric prepared.

    Attributes:
        metric: scores windows.
        arrays: of all windows, mapped from their files; empty where the metric needs none.
    """

    metric: WindowMetric
    arrays: Sequence[np.ndarray[Any, Any]]

    def scores(self, logits_NTV: Tensor, tokens_NT: Tensor, windows: Sequence[int]) -> Tensor:
        """The metric of some windows, by number [N]."""
        targets = [torch.from_numpy(array[list(windows)]).to(logits_NTV.device) for array in self.arrays]
        return self.metric.window_scores(logits_NTV, tokens_NT, targets)


@torch.no_grad()
def prepare_targets(
    metric: WindowMetric,
    model: Any,
    windows_NT: Tensor,
    batch_size: int,
    folder: Path,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Targets:
    """Asks the dense model about all windows.

    Args:
        metric: what must be known.
        model: dense.
        windows_NT: of the training.
        batch_size: windows of a pass.
        folder: for the files, which are made whole.
        on_batch: called with the windows done.

    Raises:
        ConfigError: when the disk has no room for them.
        SelfpruneError: when it is full all the same.
    """
    n_vocabulary = model.config.get_text_config().vocab_size
    if not (n_each := metric.kept_bytes(n_vocabulary)):
        return Targets(metric, ())
    n_bytes = n_each * windows_NT.numel()
    n_free = free_bytes(folder)
    if n_bytes > n_free:
        raise ConfigError(
            f"the dense model's answers to {windows_NT.numel():,} tokens of training take {n_bytes / 1e9:.2f} GB in {folder}, "
            f"whose disk has {n_free / 1e9:.2f} GB free; lower training.n_tokens or training.n_top, or raise training.n_epochs"
        )
    files: list[np.ndarray[Any, Any]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(windows_NT), batch_size):
            tokens_NT = windows_NT[start : start + batch_size].to(model.device)
            found = metric.prepare(model(input_ids=tokens_NT, use_cache=False).logits, tokens_NT)
            for i, tensor in enumerate(found):
                if len(files) <= i:
                    shape = (len(windows_NT), *tensor.shape[1:])
                    dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
                    files.append(np.lib.format.open_memmap(folder / f"targets-{i}.npy", "w+", dtype, shape))
                files[i][start : start + len(tensor)] = tensor.cpu().numpy()
            on_batch(start + len(tokens_NT))
        for file in files:
            file.flush()  # type: ignore[attr-defined]
    except OSError as error:
        raise disk_error(folder, error, RESUME_A_RUN) from error
    return Targets(metric, files)
