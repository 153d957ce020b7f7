"""How long calls take: warmed up, by turns, and again until the median is known well enough."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

WITHIN = 0.03  # of the median is the half of its interval to be
LEAST, MOST = 15, 400  # calls
WARM = 3
CONFIDENCE = 1.96  # normal quantile of the interval, 95 %


@dataclass(frozen=True)
class Timing:
    """Of one call, in milliseconds. interval: in which the median lies with 95 % confidence.
    spread: between the quartiles, as a share of the median. calls: that were timed."""

    median: float
    interval: tuple[float, float]
    spread: float
    calls: int

    @property
    def error(self) -> float:
        """Half of the interval, as a share of the median."""
        low, high = self.interval
        return (high - low) / 2 / self.median if self.median else 0.0

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Timing":
        """Free of any distribution: the interval is between two of the samples themselves, by the
        binomial law of how many lie below the median."""
        ordered = sorted(samples)
        count = len(ordered)
        reach = CONFIDENCE * math.sqrt(count) / 2
        low, high = (
            max(0, math.floor(count / 2 - reach)),
            min(count - 1, math.ceil(count / 2 + reach)),
        )
        middle = median(ordered)
        quartiles = ordered[count // 4], ordered[(3 * count) // 4]
        spread = (quartiles[1] - quartiles[0]) / middle if middle else 0.0
        return cls(middle, (ordered[low], ordered[high]), spread, count)


@dataclass
class _Run:
    call: Callable[[], object]
    samples: list[float] = field(default_factory=list)

    def sure(self, within: float) -> bool:
        return len(self.samples) >= LEAST and Timing.of(self.samples).error <= within


def clock_of(device: str, threads: int) -> tuple[Callable[[], float], str]:
    """The clock, in seconds, and its name. A single thread of the CPU waits for nobody else of its
    own, so there the processor's time is the call's, whatever else the machine does meanwhile."""
    if device == "cpu" and threads == 1:
        return time.process_time, "processor"
    return time.perf_counter, "wall"


def by_turns(
    calls: Mapping[str, Callable[[], object]],
    clock: Callable[[], float],
    seconds: float,
    alive: Callable[[int, int], None] = lambda done, of: None,
    within: float = WITHIN,
) -> dict[str, Timing]:
    """Each call's time. They take turns, so that what the machine does meanwhile meets them all;
    whoever is known within `within` sits out. At most `seconds` by the wall. alive: is told how
    many of how many are known.
    """
    runs = {name: _Run(call) for name, call in calls.items()}
    for one in runs.values():
        for _ in range(WARM):
            one.call()
    end = time.monotonic() + seconds
    while left := [one for one in runs.values() if not one.sure(within)]:
        alive(len(runs) - len(left), len(runs))
        enough = time.monotonic() > end and all(len(one.samples) >= LEAST for one in left)
        if enough or all(len(one.samples) >= MOST for one in left):
            break
        for one in left:
            began = clock()
            one.call()
            one.samples.append(1000 * (clock() - began))
    return {name: Timing.of(one.samples) for name, one in runs.items()}
