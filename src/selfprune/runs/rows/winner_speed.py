"""How fast the winner's checkpoint is beside the dense model, and what both keep of a context, where it was cut to size."""

import gc
from typing import Any

from transformers import AutoModelForCausalLM

from selfprune.allocations.budget import Measure
from selfprune.allocations.unit import Allocation, Item
from selfprune.exports.cutting import cuttable
from selfprune.models.loading import max_positions, register_per_layer
from selfprune.models.memory_check import free_memory_bytes
from selfprune.models.structures import context_costs
from selfprune.runs.preparation import PreparedRun
from selfprune.timing.workload import Mode, Timed, Workload

N_REPEATS = 5
CONTEXT = 256
"""Tokens of a prompt, where the budget names none."""


def winner_speed(prepared: PreparedRun) -> list[dict[str, Any]]:
    """Seconds of the dense model and of the winner's checkpoint, in turns; none where it keeps its size, or both do not fit.

    Args:
        prepared: what is shared; its model is made dense.
    """
    loaded, folder = prepared.loaded, prepared.folder / "model"
    if not cuttable(loaded):
        return []
    n_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    free = free_memory_bytes(loaded.device)
    if free is not None and 1.2 * n_bytes > free:
        prepared.display.warn(
            f"the winner's speed was not measured: it takes {n_bytes / 1e9:.2f} GB beside the dense model, and {loaded.device} "
            f"has {free / 1e9:.2f} GB free"
        )
        return []
    prepared.store.restore()
    register_per_layer(folder)
    small: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=loaded.model.dtype)
    small = small.to(loaded.device).eval().requires_grad_(False)
    records = []
    for workload in _workloads(prepared):
        models = Timed(loaded.model, workload), Timed(small, workload)
        for repeat in range(-1, N_REPEATS):
            for timed in models:
                timed.repeat(is_counted=repeat >= 0)
        dense, winner = (timed.seconds() for timed in models)
        asked = prepared.config.budget.speedup or None
        record = {"workload": str(workload), "n_tokens": workload.n_tokens, "dense_seconds": dense, "seconds": winner}
        records.append(record | ({"speedup_asked": asked} if asked else {}))
    del small, models
    gc.collect()
    return records


def kept_per_token(prepared: PreparedRun, allocation: Allocation) -> tuple[int, int] | None:
    """Numbers that the KV caches of the winner and of the dense model keep of a token; None where nothing is cut.

    Args:
        prepared: what is shared.
        allocation: of the winner.
    """
    if not cuttable(prepared.loaded):
        return None
    costs = context_costs(prepared.loaded.model, 1)
    heads = [unit for unit in prepared.loaded.units if unit.item is Item.HEAD_GROUP]
    return costs.n_cached - sum(allocation[unit.name] * costs.cached_per_item[unit.name] for unit in heads), costs.n_cached


def _workloads(prepared: PreparedRun) -> list[Workload]:
    """What the budget's table was measured for; else a prompt that is read, and a token after it that is written."""
    budget, positions = prepared.config.budget, max_positions(prepared.loaded.model)
    if budget.measure is Measure.LATENCY:
        told = budget.table().measured
        if "mode" in told:
            return [Workload(Mode(told["mode"]), told["batch_size"], told["context"], told["n_new"])]
    context = min(budget.context or CONTEXT, (positions or CONTEXT + 1) - N_REPEATS - 2)
    return [Workload(mode, budget.batch_size, max(1, context)) for mode in (Mode.PREFILL, Mode.DECODE)]
