"""How sure a quality is: test examples are a sample, so it comes with a standard error.

Errors are taken for those of independent samples. Candidates answer the same examples, so what they
differ by is a little surer than is said here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nasd.search.pareto import Point, covers

ERROR = "quality_error"  # the metric's name, in the unit of the quality
LEVEL = 1.96  # standard errors: 95 %


def error_of(metrics: Mapping[str, float]) -> float | None:
    """None where none was recorded, as by earlier versions."""
    return metrics.get(ERROR)


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
