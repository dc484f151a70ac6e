"""Where the weights of a model lie while they are used."""

from pathlib import Path
from typing import Any

import torch

from selfprune.models.model_config import Placement
from selfprune.models.units import find_blocks


def loading_options(placement: Placement, skeleton: Any, device: torch.device, scratch: Path | None) -> dict[str, Any]:
    """What `from_pretrained` is told, so that every module ends where it belongs.

    Args:
        placement: where weights lie.
        skeleton: the model without its weights.
        device: where blocks run and everything else lies, under STREAM.
        scratch: a folder for weights that stay on disk in another form than the checkpoint's.
    """
    if placement is Placement.WHOLE:
        return {}
    devices = "auto" if placement is Placement.SPREAD else _streaming_map(skeleton, device)
    return {"device_map": devices, "offload_folder": str(scratch) if scratch else None}


def entry_device(placement: Placement, model: Any, device: torch.device) -> torch.device:
    """Where tokens enter a loaded model: under SPREAD, where accelerate chooses, that of the embedding."""
    embedding_device: torch.device = model.get_input_embeddings().weight.device
    return device if placement is not Placement.SPREAD or embedding_device.type == "meta" else embedding_device


def _streaming_map(skeleton: Any, device: torch.device) -> dict[str, Any]:
    """Blocks on disk, everything else on the device."""
    path, blocks = find_blocks(skeleton)
    here = (device.index or 0) if device.type == "cuda" else str(device)
    devices: dict[str, Any] = {f"{path}.{index}": "disk" for index in range(len(blocks))}
    inside = tuple(f"{path}.{index}." for index in range(len(blocks)))
    for name, module in skeleton.named_modules():
        if not any(True for _ in module.children()) and not f"{name}.".startswith(inside):
            devices[name] = here
    return devices


def n_parameters_at_once(placement: Placement, skeleton: Any) -> int:
    """Parameters that lie on the device together; none under SPREAD, where accelerate chooses per module."""
    n_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    if placement is Placement.STREAM:
        sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in find_blocks(skeleton)[1]]
        n_parameters += max(sizes) - sum(sizes)
    return 0 if placement is Placement.SPREAD else n_parameters
