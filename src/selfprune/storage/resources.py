"""What a run takes of the machine: expected before it begins, measured when it ends."""

import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # not a Unix system
    resource = None  # type: ignore[assignment]

MATMUL_WIDTH = {"cpu": 1024, "cuda": 4096}
"""Of the product that is timed; a GPU needs a larger one to be busy."""
LIBRARY_BYTES = 500_000_000
"""Main memory of the interpreter with torch and transformers, before any model."""


@dataclass(frozen=True)
class Resources:
    """Memory, disk and time.

    Attributes:
        peak_memory_bytes: most memory at once, the interpreter and its libraries included; None where it is not known.
        disk_bytes: what is written.
        seconds: wall clock.
    """

    peak_memory_bytes: int | None
    disk_bytes: int
    seconds: float

    def __str__(self) -> str:
        memory = "unknown" if self.peak_memory_bytes is None else f"{self.peak_memory_bytes / 1e9:.2f} GB"
        return f"{memory} of memory at most, {self.disk_bytes / 1e9:.2f} GB of disk, {_duration(self.seconds)}"

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return asdict(self) | {"seconds": round(self.seconds, 1)}


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


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_bytes(path: Path) -> int:
    """Bytes that are free on the disk of a file or folder, which need not exist yet."""
    return shutil.disk_usage(next(parent for parent in (path, *path.absolute().parents) if parent.exists())).free


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


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"
