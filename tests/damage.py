"""Damage as disks and memory do it, for the tests that want it noticed."""

from pathlib import Path


def flip_a_bit(path: Path, at: float = 0.5) -> None:
    """One bit of a file, at that share of it."""
    content = bytearray(path.read_bytes())
    content[min(len(content) - 1, int(at * len(content)))] ^= 1
    path.write_bytes(content)
