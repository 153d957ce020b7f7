"""Values as a person reads them: numbers, durations, moments, and curves one line high.

One form of each for all that nasd shows. Standard library alone, as a look at a search starts fast.
"""

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

BARS = "▁▂▃▄▅▆▇█"
NOTHING = "–"
LONGEST_BITS = 100  # of a whole number that is written out: 30 digits

# --- numbers ----------------------------------------------------------------------------------


def number(value: float | None, digits: int = 1) -> str:
    """With so many digits behind the point, and a true minus sign."""
    if value is None:
        return NOTHING
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.replace("-", "")


def signed(value: float | None, digits: int = 2) -> str:
    """`+1.25`, `−0.50` or `0.00`."""
    text = number(value, digits)
    return f"+{text}" if value is not None and float(f"{value:.{digits}f}") > 0 else text


def counted(value: int, noun: str) -> str:
    """`1 candidate` or `1,024 candidates`."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def listed(numbers: Sequence[int]) -> str:
    """`3, 5 to 8 and 11`; ascending."""
    runs: list[list[int]] = []
    for one in numbers:
        if runs and one == runs[-1][-1] + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    parts = [
        part
        for run in runs
        for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(one) for one in run])
    ]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def parameters(value: int) -> str:
    """`66.36 M` or `812 k`."""
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def of_baseline(compression: float) -> str:
    """Parameters as a share of the baseline's, `43.9 %`: less is smaller. compression: the
    baseline's parameters divided by these."""
    return f"{share_of_baseline(compression):.1f} %"


def share_of_baseline(compression: float) -> float:
    """As `of_baseline`, in percent."""
    return 100 / compression


def rate(value: float | None) -> str:
    """Steps a second, in three digits."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes, by thousands."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} bytes"


def operations(value: float) -> str:
    """Floating-point operations, by thousands."""
    for unit, scale in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:.0f} FLOP"


def shown(value: Any, most: int = 40, write: Callable[[Any], str] = repr) -> str:
    """What somebody gave, for a message: never longer than `most` characters, whatever it is."""
    if isinstance(value, int) and value.bit_length() > LONGEST_BITS:
        return f"a number of about {round(value.bit_length() * math.log10(2)):,} digits"
    if isinstance(value, str):
        value = value[: most + 1]  # not written whole only to be cut
    try:
        text = write(value)
    except (ValueError, RecursionError):  # it holds such a number, or is nested too deeply
        return f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def named(name: str, most: int = 80) -> str:
    """A name that somebody else gave, as one line of a log may have it: `shown`, with whatever is
    no letter, digit or sign written as an escape."""
    return shown(name, most, _plain)


def _plain(name: str) -> str:
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in name
    )


# --- times ------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """`3 d 07 h`, `2 h 05 min`, `4 min 30 s` or `12 s`."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def about(seconds: float) -> str:
    """A duration, no more exact than a guess is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 36 * 60:
        return f"{minutes // 60} h {minutes % 60 // 10 * 10:02} min"
    hours = round(minutes / 60)
    return f"{hours // 24:,} d {hours % 24} h"


def hours(value: float) -> str:
    """Of slots: as many digits as say something."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def moment(at: float) -> str:
    """Seconds since the epoch as the local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def clock(at: float) -> str:
    """The local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def soon(at: float, now: float) -> str:
    """When something will be: the hour, and the day where it is another one."""
    then, today = time.localtime(at), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    near = at - now < 6 * 86400
    return time.strftime("%a %H:%M" if near else "%a %d %b", then)


# --- curves -----------------------------------------------------------------------------------


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
