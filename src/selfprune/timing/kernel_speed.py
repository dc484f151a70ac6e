"""How fast a model with zeros is when each of its matrices is multiplied by the fastest of torch's kernels here.

Limits: torch's own kernels; an engine that serves models may bring others along. In the middle of a model caches are colder than
where a kernel is chosen.

Shape suffixes: O out, I in, N sequences, T tokens.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from selfprune.timing.kernels import dense_product, median_seconds, sparse_products, sparse_weight
from selfprune.timing.machine import machine_name
from selfprune.timing.workload import Mode, Timed, Workload

N_REPEATS = 5
MIN_SPARSITY = 0.3
"""Below it no kernel is tried: all of them are slower than the dense one."""
A_GAIN = 1.02
"""Times as fast, below which nothing was gained: so much do repeats differ."""


@dataclass(frozen=True)
class KernelSpeed:
    """What a model takes.

    Attributes:
        workload: what it does, in words.
        machine: where.
        n_tokens: tokens that are read or written.
        dense_seconds: with every matrix multiplied as though it had no zeros.
        seconds: with the fastest kernel for each.
        kernels: kernel -> matrices for which it is the fastest.
    """

    workload: str
    machine: str
    n_tokens: int
    dense_seconds: float
    seconds: float
    kernels: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """In words, with tokens per second."""
        rates = [self.n_tokens / seconds for seconds in (self.dense_seconds, self.seconds)]
        told = f"{self.workload[0].upper()}{self.workload[1:]} on {self.machine}: {rates[0]:,.0f} tokens per second dense"
        if set(self.kernels) <= {"dense"}:
            return f"{told}; no kernel of torch is faster for any of its {self.kernels.get('dense', 0)} matrices, zeros or not."
        used = ", ".join(f"{kernel} for {n}" for kernel, n in sorted(self.kernels.items()))
        ratio = self.dense_seconds / self.seconds
        verdict = f"{ratio:.2f} times as fast" if ratio >= A_GAIN else f"no gain ({ratio:.2f} times as fast)"
        return f"{told}, {rates[1]:,.0f} with the fastest kernel of each matrix ({used}): {verdict}."


class SparseLinear(nn.Module):
    """A linear layer whose weight is held in a sparse format.

    Args:
        dense: the layer that it stands for.
        kernel: a name of `sparse_products`.
    """

    def __init__(self, dense: nn.Linear, kernel: str) -> None:
        super().__init__()
        self._weight_OI, self._kernel, self._bias_O = sparse_weight(dense.weight, kernel), kernel, dense.bias

    def forward(self, input_NTI: Tensor) -> Tensor:
        """The product, and the bias where there is one."""
        rows = input_NTI.flatten(0, -2)
        product = (self._weight_OI @ rows.T).T if self._kernel == "csr" else linear(rows, self._weight_OI)
        product = product if self._bias_O is None else product + self._bias_O
        return product.reshape(*input_NTI.shape[:-1], -1)


@torch.no_grad()
def kernel_speed(model: Any, workload: Workload) -> KernelSpeed:
    """Chooses a kernel for each matrix alone, and times the whole model with and without them, in turns.

    Args:
        model: any causal language model; it is the same afterwards.
        workload: what it does.
    """
    n_rows = workload.batch_size * (1 if workload.mode is Mode.DECODE else workload.context)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name: _fastest(module, n_rows) for name, module in linears.items()}
    sparse = {name: SparseLinear(linears[name], kernel) for name, kernel in chosen.items() if kernel != "dense"}
    dense_time, sparse_time = Timed(model, workload), Timed(model, workload)
    try:
        for repeat in range(-1, N_REPEATS):
            for timed, modules in ((dense_time, linears), (sparse_time, sparse)):
                for name, module in modules.items():
                    model.set_submodule(name, module)
                timed.repeat(is_counted=repeat >= 0)
    finally:
        for name, module in linears.items():
            model.set_submodule(name, module)
    seconds = dense_time.seconds(), sparse_time.seconds()
    machine = machine_name(next(model.parameters()).device)
    return KernelSpeed(str(workload), machine, workload.n_tokens, *seconds, dict(Counter(chosen.values())))


def _fastest(module: nn.Linear, n_rows: int) -> str:
    """The name of the kernel that multiplies by a weight fastest."""
    weight_OI = module.weight
    if float((weight_OI == 0).float().mean()) < MIN_SPARSITY:
        return "dense"
    generator = torch.Generator().manual_seed(0)
    input_TI = torch.randn(n_rows, weight_OI.shape[1], generator=generator).to(weight_OI.device, weight_OI.dtype)
    products = {"dense": dense_product(weight_OI, input_TI), **sparse_products(weight_OI, input_TI)}
    seconds = {name: median_seconds(product, weight_OI.device, N_REPEATS) for name, product in products.items()}
    return min(seconds, key=seconds.__getitem__)
