"""Values as a person reads them: durations, moments, counts, and curves one line high."""

import math
import time
from collections.abc import Sequence
from itertools import pairwise

BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """`3d 07h`, `2h 05m`, `4m 30s` or `12s`."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def moment(at: float) -> str:
    """Seconds since the epoch as the local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def count(number: int) -> str:
    """`66.4M`, `812k` or `97`."""
    if number >= 1e6:
        return f"{number / 1e6:.1f}M"
    return f"{number / 1e3:.0f}k" if number >= 1e3 else str(number)


def size(number: float) -> str:
    """Bytes, by thousands."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f} bytes"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """The course of some values, the lowest as the lowest bar. More values than `width` are put
    together to means; what is not finite has no bar."""
    if len(values) > width:
        edges = [round(place * len(values) / width) for place in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    top = len(BARS) - 1
    return "".join(
        BARS[round((value - low) / span * top)] if math.isfinite(value) else " " for value in values
    )
