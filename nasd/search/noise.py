"""How sure a quality is: test examples are a sample, and so are the seeds of a training, so that it
comes with a standard error.

Errors are taken for those of independent samples. Candidates answer the same examples, so what they
differ by is a little surer than is said here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nasd.search.pareto import Point, covers

ERROR = "quality_error"  # the metric's name, in the unit of the quality
# Of a score that is the mean over several seeds: how many, the standard deviation of quality among
# them, and the quality of the last one alone.
SEEDS, DEVIATION, OF_SEED = "seeds", "quality_deviation", "quality_of_seed"
# Metrics that are settings of the weights they stand beside, those of the first seed, and no score.
SETTINGS = ("threshold",)
LEVEL = 1.96  # standard errors: 95 %


def error_of(metrics: Mapping[str, float]) -> float | None:
    """None where none was recorded, as by earlier versions."""
    return metrics.get(ERROR)


def with_another_seed(
    before: Mapping[str, float], found: Mapping[str, float], mean: float, quality: float
) -> dict[str, float]:
    """The mean of a score over one seed more. before: over the seeds so far, whose mean quality is
    `mean`; found: under the new one, of that quality. What was not found again stays, and so do
    settings, as the weights that are kept are the first seed's.

    All seeds answer the same examples, so what these differ by does not become less with more
    seeds; what the seeds differ by does. The variance is the sum of both.
    """
    seeds = int(before.get(SEEDS, 1)) + 1
    own = {SEEDS, DEVIATION, OF_SEED, ERROR, *SETTINGS}
    told = dict(before)
    for name in (before.keys() & found.keys()) - own:
        told[name] = before[name] + (found[name] - before[name]) / seeds
    # Welford's way to the sum of squares about the mean.
    squares = before.get(DEVIATION, 0.0) ** 2 * (seeds - 2)
    squares += (quality - mean) ** 2 * (seeds - 1) / seeds
    told |= {SEEDS: seeds, DEVIATION: math.sqrt(squares / (seeds - 1)), OF_SEED: quality}
    if ERROR in before and ERROR in found:
        sampled = before[ERROR] ** 2 - before.get(DEVIATION, 0.0) ** 2 / (seeds - 1)
        sampled += (found[ERROR] ** 2 - sampled) / seeds
        told[ERROR] = math.sqrt(max(0.0, sampled) + told[DEVIATION] ** 2 / seeds)
    else:
        told.pop(ERROR, None)
    return told


@dataclass(frozen=True, slots=True)
class Measured:
    """beside: by all objectives but quality, each to be maximised."""

    quality: float
    error: float
    beside: Point


def alike(one: Measured, other: Measured) -> bool:
    """Whether the difference of their qualities is within noise."""
    gap = abs(one.quality - other.quality)
    return gap <= LEVEL * math.hypot(one.error, other.error)


def unsure(candidate: int, pool: Mapping[int, Measured]) -> tuple[int, ...]:
    """On whom the candidate's rank rests by no more than noise: they are as good by all other
    objectives, and no better or worse in quality than sampling explains."""
    mine = pool[candidate]
    return tuple(
        other
        for other, its in pool.items()
        if other != candidate and covers(its.beside, mine.beside) and alike(mine, its)
    )


def shown(quality: float, error: float | None, digits: int = 2) -> str:
    """`85.21 ± 1.90`, a standard error behind the sign."""
    return f"{quality:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
