"""What the weights of a checkpoint say against it once they are loaded."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from selfprune.checkpoints.source import AnySource
from selfprune.errors import ModelError
from selfprune.models.units import find_blocks

N_NAMED = 3
N_PREDICTING = ("num_nextn_predict_layers", "num_mtp_layers")
"""How configurations call the number of blocks, numbered on from the others, that predict the tokens after the next."""
PREDICTING = re.compile(r"(^|\.)mtp([._\d]|$)")
"""How tensors are called that do so outside of these blocks (multi-token prediction)."""


def doubts_of_loading(path: str, model: Any, unused: set[str]) -> list[str]:
    """What a run should tell about a checkpoint that loads.

    Nothing is told of tensors that predict further tokens than the next: transformers reads them of no model, and drops them from
    `unused` itself where they have the numbers of the published checkpoint (DeepSeek-V3's block 61). They are carried over.

    Args:
        path: the model as the user named it.
        model: the loaded model.
        unused: names of the checkpoint's tensors that it has no place for.
    """
    unused = {name for name in unused if not _predicts_further_tokens(name, model)}
    if not unused:
        return []
    named = ", ".join(sorted(unused)[:N_NAMED])
    return [
        f"the checkpoint of model.path={path} holds {len(unused)} tensors that {type(model).__name__} does not use, such as "
        f"{named}; if its config.json names fewer blocks (num_hidden_layers) or another architecture than it was trained with, "
        "this is not the model that was trained, so compare config.json with the original's"
    ]


def _predicts_further_tokens(name: str, model: Any) -> bool:
    """Whether a tensor of the checkpoint belongs to multi-token prediction, by its name and the configuration."""
    if PREDICTING.search(name):
        return True
    config, (path, blocks) = model.config.get_text_config(), find_blocks(model)
    n_predicting = max(getattr(config, each, None) or 0 for each in N_PREDICTING)
    number = re.search(rf"(^|\.){path.rpartition('.')[2]}\.(\d+)\.", name)
    return bool(number and len(blocks) <= int(number[2]) < len(blocks) + n_predicting)


def check_numbers(path: str, model: Any, stored: Callable[[], Mapping[str, AnySource]]) -> None:
    """Refuses weights with NaN or infinite numbers, and says where these come from.

    Args:
        path: the model as the user named it.
        model: the loaded model; weights that are not at hand are passed over.
        stored: opens the checkpoint's own tensors.

    Raises:
        ModelError: when a weight has one.
    """
    at_hand = ((name, parameter) for name, parameter in model.named_parameters() if not parameter.is_meta)
    broken = next(((name, parameter.dtype) for name, parameter in at_hand if not parameter.isfinite().all()), None)
    if broken is None:
        return
    name, dtype = broken
    if largest := _largest_stored(name, dtype, stored):
        raise ModelError(
            f"the weight {name} of model.path={path} is sound in the checkpoint, but goes up to {largest:.3g}, and "
            f"{overflow(dtype)}"
        )
    raise ModelError(
        f"the weight {name} of model.path={path} holds NaN or infinite numbers; the checkpoint is broken, fetch it again"
    )


def check_shapes(path: str, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuses weights whose shapes are not those of the architecture, which would be random.

    Args:
        path: the model as the user named it.
        mismatched: name, shape in the checkpoint and shape in the model of each.

    Raises:
        ModelError: when there is one.
    """
    told = sorted((name, list(stored), list(expected)) for name, stored, expected in mismatched)
    if told:
        name, stored, expected = told[0]
        raise ModelError(
            f"{len(told)} weights of model.path={path} have other shapes than its config.json says, such as {name} with {stored} "
            f"instead of {expected}; weights and config.json come from different checkpoints, so fetch both again"
        )


def overflow(dtype: torch.dtype) -> str:
    """The end of a sentence on numbers that a format cannot hold."""
    name = str(dtype).removeprefix("torch.")
    wider = "model.dtype=BFLOAT16 or FLOAT32" if dtype == torch.float16 else "model.dtype=FLOAT32"
    return f"{name} ends at {torch.finfo(dtype).max:.5g}; give {wider}"


def _largest_stored(name: str, dtype: torch.dtype, stored: Callable[[], Mapping[str, AnySource]]) -> float | None:
    """The largest magnitude of a weight on disk, where it is finite and beyond a narrower format; None otherwise."""
    try:
        tensor = stored()[name].read()
    except (ModelError, KeyError):  # a pickle of another form, or a weight that is made of several
        return None
    largest = float(tensor.double().abs().max())
    return largest if torch.finfo(dtype).max < largest < float("inf") else None
