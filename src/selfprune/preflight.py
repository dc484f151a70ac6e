"""What is checked of a model before it is used: that it fits into memory, and that its blocks run as they are walked.

Shape suffixes: N sequences, T tokens, V vocabulary.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfprune.blocks import check_same_arguments, enter
from selfprune.errors import ModelError
from selfprune.weight_checks import overflow

N_PROBE_TOKENS = 8
MoreBytes = Callable[[Any, int, int], int]
"""What a caller holds besides the weights, in bytes; by the model without weights, its parameters and the bytes of each."""


@dataclass(frozen=True)
class Preflight:
    """What loading needs and what there is.

    Attributes:
        n_parameters: parameters that are held at once, tied ones once.
        needed_bytes: memory for the weights and for what the caller adds.
        available_bytes: free memory of the device; None where the system does not say.
        bytes_per_weight: of one weight, in the number format that it will have.
        skeleton: the model without its weights.
    """

    n_parameters: int
    needed_bytes: int
    available_bytes: int | None
    bytes_per_weight: int
    skeleton: Any


def check_memory(
    path: str, skeleton: Any, n_parameters: int, dtype: torch.dtype, device: torch.device, more_bytes: int
) -> Preflight:
    """Checks that a model fits into the device's free memory.

    Args:
        path: the model as the user named it.
        skeleton: the model without its weights.
        n_parameters: how many are held at once.
        dtype: number format that the weights will have.
        device: where they will lie.
        more_bytes: what the caller will hold besides.

    Raises:
        ModelError: when it does not fit, or when there is no such device.
    """
    needed = n_parameters * dtype.itemsize + more_bytes
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"model.device={device}, but torch sees no GPU here; give model.device=cpu, or install a torch build with CUDA"
        )
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory_bytes()
    if available is not None and needed > available:
        besides = f", and {more_bytes / 1e9:.2f} GB more for the run," if more_bytes else ""
        fewer = " fewer windows (data.n_search, data.n_report, search.batch_size)," if more_bytes else ""
        raise ModelError(
            f"model.path={path} does not fit: {n_parameters:,} parameters at {dtype.itemsize} bytes{besides} need "
            f"{needed / 1e9:.2f} GB, but {device} has {available / 1e9:.2f} GB free; give model.dtype=BFLOAT16, a device with "
            f"more memory or a smaller model,{fewer} or prune it from disk, without a search, with "
            f"`python -m selfprune.prune model.placement=STREAM`"
        )
    return Preflight(n_parameters, needed, available, dtype.itemsize, skeleton)


def check_entry(model: Any, path: str, blocks: list[nn.Module], device: torch.device) -> None:
    """Checks, without running any block, that each is called once and with arguments that hold for all tokens.

    Args:
        model: the loaded model.
        path: the path of its blocks' list.
        blocks: its decoder blocks.
        device: where its embeddings lie.

    Raises:
        ModelError: when it is otherwise.
    """
    tokens_NT = _probe(model, device)
    entry = enter(model, blocks, tokens_NT)
    if len(entry.calls) != len(blocks):
        raise ModelError(
            f"the blocks {path} of {type(model).__name__} should run once each, but {len(entry.calls)} of {len(blocks)} ran; it "
            "cannot be pruned"
        )
    check_same_arguments(entry, enter(model, blocks, tokens_NT.roll(1, dims=1)), model)


def check_by_running(model: Any, path: str, blocks: list[nn.Module], device: torch.device) -> None:
    """Checks on two sequences with one prefix that each block runs once, in order, and that no token sees a later one.

    Args:
        model: the loaded model.
        path: the path of its blocks' list.
        blocks: its decoder blocks.
        device: where its weights lie.

    Raises:
        ModelError: when the blocks run otherwise, the logits are not finite, or the model is not causal.
    """
    order: list[int] = []
    hooks = [b.register_forward_pre_hook(lambda *_, i=i: order.append(i)) for i, b in enumerate(blocks)]
    tokens_NT = _probe(model, device)
    try:
        with torch.no_grad():
            logits_NTV = model(input_ids=tokens_NT, attention_mask=torch.ones_like(tokens_NT), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if order != list(range(len(blocks))):
        raise ModelError(
            f"the blocks {path} of {type(model).__name__} should run once each and in order, but ran as {order}; it cannot "
            "be pruned"
        )
    if not logits_NTV.isfinite().all():
        dtype = logits_NTV.dtype
        cause = (
            "its weights are finite, but too large or broken: fetch the checkpoint again"
            if dtype == torch.float32
            else f"what it computes on the way overflows, since {overflow(dtype)}"
        )
        raise ModelError(f"{type(model).__name__} gives NaN or infinite logits as loaded; {cause}")
    prefix_NTV = logits_NTV[:, :-1].float()
    if (prefix_NTV[0] - prefix_NTV[1]).abs().max() > 8 * torch.finfo(logits_NTV.dtype).eps * prefix_NTV.abs().max():
        raise ModelError(
            f"{type(model).__name__} is not a causal language model: its early logits depend on a later token; give a "
            "decoder-only model"
        )
    with torch.no_grad():
        check_entry(model, path, blocks, device)


def _probe(model: Any, device: torch.device) -> Tensor:
    """Two sequences with one prefix."""
    tokens_NT: Tensor = torch.arange(N_PROBE_TOKENS, device=device).repeat(2, 1) % model.config.get_text_config().vocab_size
    tokens_NT[1, -1] = 0
    return tokens_NT


def _free_memory_bytes() -> int | None:
    """Memory that can be had without swapping, within the container's limit if there is one."""
    candidates = []
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        candidates.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            candidates.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        group = Path("/sys/fs/cgroup")
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        candidates.append(max(0, int((group / "memory.max").read_text()) - int(held["anon"])))
    except (OSError, KeyError, ValueError):
        pass
    return min(candidates, default=None)
