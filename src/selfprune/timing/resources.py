"""What a command takes of the machine: expected before it begins, measured when it ends."""

from dataclasses import asdict, dataclass


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


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"
