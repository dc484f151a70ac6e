"""Brings the weights of a block to the device that computes, where accelerate keeps them on disk or in other memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.hooks import AlignDevicesHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset, set_module_tensor_to_device
from torch import Tensor, nn


@contextmanager
def resident(block: nn.Module) -> Iterator[None]:
    """While open, the block's weights that accelerate keeps on disk or in other memory lie on the device that computes.

    Changes to weights that are kept in memory are written back; those kept on disk stay as they were.
    """
    hooks = [(module, hook) for module in block.modules() if (hook := _offloading_hook(module)) is not None]
    for module, hook in hooks:
        hook.offload = False
        for name, _ in list(module.named_parameters(recurse=False)):
            set_module_tensor_to_device(module, name, hook.execution_device, value=hook.weights_map[name])
    try:
        yield
    finally:
        for module, hook in hooks:
            for name, parameter in list(module.named_parameters(recurse=False)):
                kept = _kept_in_memory(hook.weights_map, name)
                if kept is not None:
                    kept.copy_(parameter.detach())
                set_module_tensor_to_device(module, name, "meta")
            hook.offload = True


def _kept_in_memory(weights_map: Any, name: str) -> Tensor | None:
    """The tensor that accelerate fetches a weight from; None where it reads a file."""
    if isinstance(weights_map, PrefixedDataset):
        name, weights_map = weights_map.prefix + name, weights_map.dataset
    kept = weights_map.state_dict if isinstance(weights_map, OffloadedWeightsLoader) else weights_map
    tensor: Tensor | None = kept.get(name)
    return tensor


def _offloading_hook(module: nn.Module) -> Any:
    """Accelerate's hook that fetches this module's weights when it runs; None where they lie at hand."""
    hook = getattr(module, "_hf_hook", None)
    return hook if isinstance(hook, AlignDevicesHook) and hook.offload and hook.weights_map is not None else None
