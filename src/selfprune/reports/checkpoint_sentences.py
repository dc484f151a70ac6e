"""What is said of the winner's checkpoint beside the dense model: size, cache and speed."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfprune.checkpoints.reader import open_tensors

SPEEDUP_TOLERANCE = 0.03


def checkpoint_lines(report: Mapping[str, Any]) -> list[str]:
    """Paragraphs for `report.md`, with an empty line after each.

    Args:
        report: `report.json`.
    """
    size = " ".join(filter(None, [size_sentence(report["model"]), cache_sentence(report["model"])]))
    return [line for paragraph in (size, *map(speed_sentence, report["speed"])) for line in (paragraph, "")]


def size_record(folder: Path, n_dense: int, kept_per_token: tuple[int, int] | None) -> dict[str, int]:
    """How large the winner's checkpoint is, for `report.json`.

    Args:
        folder: of the checkpoint.
        n_dense: parameters of the dense model.
        kept_per_token: numbers that the KV caches of winner and dense model keep of a token; None where nothing is cut.

    Raises:
        ModelError: when the checkpoint is not whole.
    """
    tensors = open_tensors(folder).values()
    n_bytes = sum(path.stat().st_size for path in {tensor.path for tensor in tensors})
    size = {"parameters": sum(math.prod(tensor.shape) for tensor in tensors), "dense_parameters": n_dense, "bytes": n_bytes}
    if kept_per_token:
        size |= dict(zip(("cached_per_token", "dense_cached_per_token"), kept_per_token, strict=True))
    return size


def size_sentence(model: Mapping[str, int]) -> str:
    """How large the winner's checkpoint is beside the dense model.

    Args:
        model: of `report.json`.
    """
    n_left, n_dense, size = model["parameters"], model["dense_parameters"], f"{model['bytes'] / 1e6:,.1f} MB of weights"
    if n_left < n_dense:
        share = f"{n_left:,} of the dense model's {n_dense:,} parameters ({n_left / n_dense:.1%})"
        return f"The winner's checkpoint holds {share}, in {size}."
    return f"The winner's checkpoint keeps all {n_dense:,} parameters of the dense model, zeros among them, in {size}."


def cache_sentence(model: Mapping[str, int]) -> str:
    """What a token takes in the KV cache, where heads were cut; else nothing.

    Args:
        model: of `report.json`.
    """
    if "cached_per_token" not in model:
        return ""
    n_left, n_dense = model["cached_per_token"], model["dense_cached_per_token"]
    return f"Of each token its KV cache keeps {n_left:,} numbers, the dense model's {n_dense:,} ({n_left / n_dense:.1%})."


def speed_sentence(speed: Mapping[str, Any]) -> str:
    """How fast the winner is beside the dense model, and whether that is what was asked for.

    Args:
        speed: one of `speed` of `report.json`.
    """
    rates = [speed["n_tokens"] / speed[name] for name in ("seconds", "dense_seconds")]
    speedup = speed["dense_seconds"] / speed["seconds"]
    told = (
        f"{speed['workload'][0].upper()}{speed['workload'][1:]}, it makes {rates[0]:,.0f} tokens per second, the dense model "
        f"{rates[1]:,.0f}: {speedup:.2f} times as many."
    )
    if "speedup_asked" not in speed:
        return told
    asked = speed["speedup_asked"]
    if abs(speedup / asked - 1) <= SPEEDUP_TOLERANCE:
        return f"{told} That is what was asked for ({asked:g}), within {SPEEDUP_TOLERANCE:.0%}."
    return (
        f"{told} {asked:g} was asked for: by the latency table the winner meets it, so the seconds of single sublayers there do "
        "not add up to those of the model here; measure the table anew with more n_repeats, on the machine and with the number "
        "of threads that count, while nothing else runs."
    )
