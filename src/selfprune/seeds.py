"""Seeds for everything that is drawn, each from what it is drawn for."""

from hashlib import blake2b


def stable_hash(*key: object) -> int:
    """A hash that is the same in every process and on every machine."""
    return int.from_bytes(blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest(), "big")
