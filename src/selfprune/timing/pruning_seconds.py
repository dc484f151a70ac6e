"""Forecasts the seconds of a pruning: a block's forward passes and the pruner's own work, both timed on this machine.

The pruner is run on random matrices of growing size until a second is spent; what it takes is fitted as operations on weights,
on rows by input channels twice (updates), and on input channels thrice (factorisations), and read off at the sizes of the model.

Aim: within a factor of two. Limits: an iteration that ends when it is settled (ALPS) may take more or fewer steps on real inputs.

Shape suffixes: N sequences, T tokens, D hidden width, O out, I in, P probes, F terms of the fit.
"""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from selfprune.allocations.unit import Item
from selfprune.models.blocks.calls import capture_calls
from selfprune.models.blocks.residency import resident
from selfprune.models.loading import LoadedModel
from selfprune.models.units import n_row_groups, weight_view
from selfprune.pruners.base import Pruner
from selfprune.statistics.base import Statistics
from selfprune.statistics.pair import gathers_gram
from selfprune.timing.machine import matmul_flops_per_second

PROBE_SECONDS = 1.0
"""Spent on probes of a pruner, and no more on the last of them."""
LEAST_WIDTH = 64
N_PROBE_TOKENS = 256
N_FORWARDS_OF_GRADIENT = 5
"""A forward pass, another with a graph, a backward pass, which costs two, and the output head."""


def pruning_seconds(loaded: LoadedModel, windows_NT: Tensor, pruner: Pruner) -> float:
    """Seconds that `prune_in_place` takes, the way of pruned blocks to disk left out.

    Args:
        loaded: the model, dense or pruned; it stays as it is.
        windows_NT: calibration windows.
        pruner: decides which weights go.
    """
    n_passes = N_FORWARDS_OF_GRADIENT + 1 if pruner.needs_gradients else 2
    passes = _walk_seconds(loaded, windows_NT, n_passes)
    return passes + _gram_seconds(loaded, windows_NT, pruner) + solve_seconds(loaded, pruner)


def solve_seconds(loaded: LoadedModel, pruner: Pruner) -> float:
    """Seconds that the pruner takes for every unit once, with what it prepares for every input."""
    shapes = [(n_row_groups(loaded.model, unit), *weight_view(loaded.model, unit).shape) for unit in loaded.units]
    probe = _Probes(pruner, loaded.device, loaded.model.dtype, max(n_in for _, _, n_in in shapes))
    solving = math.fsum(n_groups * probe.solving(n_out // n_groups, n_in) for n_groups, n_out, n_in in shapes)
    return solving + math.fsum(n * probe.preparing(n_in) for n, n_in in _inputs(loaded))


def _inputs(loaded: LoadedModel) -> Iterator[tuple[int, int]]:
    """Row groups and width of every input; units of one module and width are taken to share theirs."""
    inputs = {
        (unit.matrix.rpartition(".")[0], weight_view(loaded.model, unit).shape[1]): n_row_groups(loaded.model, unit)
        for unit in loaded.units
    }
    for (_, n_in), n_groups in inputs.items():
        yield n_groups, n_in


def _gram_seconds(loaded: LoadedModel, windows_NT: Tensor, pruner: Pruner) -> float:
    """Seconds of the outer products of the inputs, where the pruner gathers them."""
    if not gathers_gram(pruner.statistics(1, 1, 1)):
        return 0.0
    # a bit more than the upper triangle
    n_products = 9 / 16 * windows_NT.numel() * sum(n_in**2 for _, n_in in _inputs(loaded))
    return 2 * n_products / matmul_flops_per_second(loaded.device)


@torch.no_grad()
def _walk_seconds(loaded: LoadedModel, windows_NT: Tensor, n_passes: int) -> float:
    """Seconds of fetching every block and of some passes of all windows through it, by the first block and a few tokens."""
    few_NT = windows_NT[:1, :N_PROBE_TOKENS].to(loaded.device)
    entry = capture_calls(loaded.model, loaded.blocks, few_NT)

    def run() -> None:
        float(entry.run(0, loaded.blocks[0], entry.hidden_NTD)[0, 0, 0])

    began = time.perf_counter()
    with resident(loaded.blocks[0]):
        fetching = time.perf_counter() - began
        run()
        seconds = min(_seconds(run) for _ in range(2))
    return len(loaded.blocks) * (fetching + n_passes * seconds * windows_NT.numel() / few_NT.numel())


class _Probes:
    """What a pruner takes at a few sizes, and the fit that reads it off at others."""

    def __init__(self, pruner: Pruner, device: torch.device, dtype: torch.dtype, widest: int) -> None:
        self.pruner, self.device, self.dtype = pruner, device, dtype
        solved: list[tuple[int, int, float]] = []
        prepared: list[tuple[int, int, float]] = []
        multiple = pruner.input_multiple()
        self._probe(multiple, multiple)  # the first call of anything is slow
        began, width, last = time.perf_counter(), LEAST_WIDTH, 0.0
        # a size twice as large takes eight times as long at most
        while width <= max(widest, LEAST_WIDTH) and 8 * last < PROBE_SECONDS and time.perf_counter() - began < PROBE_SECONDS:
            start, n_in = time.perf_counter(), width // multiple * multiple
            for n_out in (width, 3 * width):
                preparing, solving = self._probe(n_out, n_in)
                solved.append((n_out, n_in, solving))
                prepared.append((0, n_in, preparing))
            last, width = time.perf_counter() - start, 2 * width
        self.solving = _fit(solved)
        self._preparing = _fit(prepared)

    def preparing(self, n_in: int) -> float:
        """Seconds of what is worked out once for an input."""
        return self._preparing(0, n_in)

    def _probe(self, n_out: int, n_in: int) -> tuple[float, float]:
        """Seconds of the preparation and of the pruning of one random matrix."""
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(n_out, n_in, generator=generator).to(self.device, self.dtype)
        n_items = weight.numel()
        if Item.WEIGHT not in self.pruner.items():
            weight, n_items = weight[:, :, None], n_in  # channels, of which there are more than heads
        statistics: Statistics = self.pruner.statistics(1, n_in, 2)
        fraction = self.pruner.level_fraction()
        n_pruned = round((0.5 if fraction is None else fraction) * n_items)
        if self.pruner.needs_gradients:
            self.pruner.see_gradient(statistics, weight, torch.randn(n_out, n_in, generator=generator).to(self.device))
        if self.pruner.needs_inputs:
            # channels of unlike size, as those of a model
            inputs_NTI = torch.randn(2, n_in, n_in, generator=generator) * torch.logspace(-1, 1, n_in)
            statistics.update(inputs_NTI.to(self.device, self.dtype))
        preparing = _seconds(lambda: self.pruner.prepare(statistics))
        # reading a number waits for a GPU to finish
        return preparing, _seconds(lambda: bool(self.pruner.prune(weight, statistics, n_pruned).kept.any()))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _fit(probes: list[tuple[int, int, float]]) -> Callable[[int, int], float]:
    """Seconds by output and input width, as a sum of terms with weights from 0 on that miss no probe by much, relatively."""
    terms_PF = np.array([_terms(n_out, n_in) for n_out, n_in, _ in probes])
    seconds_P = np.array([max(seconds, 1e-7) for _, _, seconds in probes])
    scale_F = terms_PF.max(axis=0).clip(min=1)
    weights_F, _ = nnls(terms_PF / scale_F / seconds_P[:, None], np.ones(len(probes)))
    return lambda n_out, n_in: float(np.array(_terms(n_out, n_in)) / scale_F @ weights_F)


def _terms(n_out: int, n_in: int) -> list[float]:
    """What the work of a pruner is a sum of."""
    return [1.0, n_in, n_out * n_in, n_out * n_in**2, n_in**3]
