"""What this machine is, how fast it multiplies, and how much memory a process has held."""

import platform
import sys
import time
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # not a Unix system
    resource = None  # type: ignore[assignment]

MATMUL_WIDTH = {"cpu": 1024, "cuda": 4096}
"""Of the product that is timed; a GPU needs a larger one to be busy."""


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most memory that this process held so far: on a GPU what torch took of it, else what was resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Linux: `getrusage` would count what the program that started this one held, if that was more
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    if resource is None:
        return None
    # macOS counts bytes, the others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine_name(device: torch.device) -> str:
    """The model of a processor or of a GPU, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """The rate of a square matrix product on this device, the best of three."""
    width = MATMUL_WIDTH.get(device.type, MATMUL_WIDTH["cpu"])
    # a matrix of ones would be multiplied faster than weights are
    matrix = torch.randn(width, width, generator=torch.Generator(device).manual_seed(0), device=device).to(dtype)
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        # reading one number waits for a GPU to finish
        float((matrix @ matrix)[0, 0])
        best = max(best, 2 * width**3 / (time.perf_counter() - start))
    return best
