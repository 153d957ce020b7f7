"""Waiting until the processor has cores to spare, and which those are."""

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

STAT = Path("/proc/stat")
LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 600.0  # then it is measured all the same, and how it spread is told
IDLE = 0.9  # of a core's time, for it to be spare

Ticks = Mapping[int, tuple[int, int]]  # of each core: idle, and all


def spare(before: Ticks, after: Ticks, allowed: set[int]) -> list[int]:
    """The cores that were idle between two looks, the idlest first."""
    shares = {
        core: (after[core][0] - before[core][0]) / max(1, after[core][1] - before[core][1])
        for core in allowed & before.keys() & after.keys()
    }
    return sorted(
        (c for c, share in shares.items() if share >= IDLE), key=lambda c: (-shares[c], c)
    )


def ticks(text: str) -> Ticks:
    """Of each core, from what /proc/stat says."""
    found = {}
    for line in text.splitlines():
        name, *values = line.split()
        if core := re.fullmatch(r"cpu(\d+)", name):
            numbers = [int(value) for value in values[:8]]
            found[int(core[1])] = (numbers[3] + numbers[4], sum(numbers))
    return found


def cores(
    threads: int,
    say: Callable[[str], None],
    patience: float = PATIENCE_SECONDS,
    look: Callable[[], str] = STAT.read_text,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """So many cores that nobody else uses; waits for them, and says so. After `patience` seconds
    the first that there are."""
    allowed = os.sched_getaffinity(0)
    waited = 0.0
    while True:
        before = ticks(look())
        sleep(LOOK_SECONDS)
        waited += LOOK_SECONDS
        found = spare(before, ticks(look()), allowed)
        if len(found) >= threads:
            return sorted(found[:threads])
        if waited >= patience:
            break
        say(f"waiting: others use {len(allowed) - len(found)} of {len(allowed)} cores")
    return sorted(allowed)[:threads]
