"""Randomness by name: the same choice draws the same numbers, whatever happened to run first.

Every random choice of a search draws from a stream named by (seed, generation, purpose, index),
so a search that was killed and taken up again decides as one that never stopped.
"""

import hashlib
import random


def stream_seed(seed: int, generation: int, purpose: str, index: int = 0) -> int:
    """The seed of a named stream: 63 bits, which torch generators take as well."""
    name = f"{seed}/{generation}/{purpose}/{index}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def stream(seed: int, generation: int, purpose: str, index: int = 0) -> random.Random:
    """A fresh generator at the start of a named stream."""
    return random.Random(stream_seed(seed, generation, purpose, index))
