"""The ways in which torch multiplies by a sparse matrix, and how long each takes here.

Shape suffixes: O out, I in, T tokens.
"""

import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.sparse import to_sparse_semi_structured

logger = logging.getLogger(__name__)

SECONDS_PER_REPEAT = 1e-3
"""Shorter products are repeated within one measurement, so that the clock's own time does not matter."""

Product = Callable[[], Tensor]


def sparse_products(weight_OI: Tensor, input_TI: Tensor) -> dict[str, Product]:
    """Kernel -> the product of inputs and a weight with zeros; kernels that do not take these matrices are left out.

    Args:
        weight_OI: the pruned weight.
        input_TI: the inputs.

    Returns:
        `csr` (compressed rows) and, on a GPU where two of every four weights are zero, `2:4`.
    """
    found: dict[str, Product] = {}
    try:
        rows = sparse_weight(weight_OI, "csr")
        found["csr"] = _tried(lambda: rows @ input_TI.T)
    except (RuntimeError, NotImplementedError) as error:
        logger.info("no csr product of %s on %s: %s", weight_OI.dtype, weight_OI.device, error)
    if weight_OI.is_cuda and _is_two_of_four(weight_OI):
        try:
            halves = sparse_weight(weight_OI, "2:4")
            found["2:4"] = _tried(lambda: linear(input_TI, halves))
        except (RuntimeError, NotImplementedError, ValueError) as error:
            logger.info("no 2:4 product of %s on %s: %s", weight_OI.dtype, weight_OI.device, error)
    return found


def sparse_weight(weight_OI: Tensor, kernel: str) -> Tensor:
    """A weight in the format of a kernel.

    Args:
        weight_OI: the pruned weight.
        kernel: `csr` or `2:4`.

    Raises:
        RuntimeError, NotImplementedError, ValueError: as torch does, when the format cannot hold it.
    """
    if kernel == "2:4":
        return to_sparse_semi_structured(weight_OI)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return weight_OI.to_sparse_csr()


def dense_product(weight_OI: Tensor, input_TI: Tensor) -> Product:
    """The product that takes no notice of zeros."""
    return lambda: linear(input_TI, weight_OI)


def median_seconds(product: Product, device: torch.device, n_repeats: int) -> float:
    """The median of several measurements of a product, after one that warms up.

    Args:
        product: what is measured.
        device: where it runs.
        n_repeats: how many measurements.
    """
    _seconds(product, device, 1)
    n_calls = max(1, math.ceil(SECONDS_PER_REPEAT / max(_seconds(product, device, 1), 1e-9)))
    return statistics.median(_seconds(product, device, n_calls) for _ in range(n_repeats))


def _seconds(product: Product, device: torch.device, n_calls: int) -> float:
    """Seconds of one call, as the mean of several."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(n_calls):
        product()
    wait_for(device)
    return (time.perf_counter() - start) / n_calls


def wait_for(device: torch.device) -> None:
    """Waits for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tried(product: Product) -> Product:
    """The product, after it has run once without an error."""
    product()
    return product


def _is_two_of_four(weight_OI: Tensor) -> bool:
    is_divisible = weight_OI.shape[1] % 4 == 0
    return is_divisible and bool(((weight_OI != 0).reshape(-1, 4).sum(dim=1) <= 2).all())
