"""Estimates with their intervals. None where there is too little to estimate from.

Without scipy.stats, of which they would need six functions, and which takes a second to import; the
tests hold them against it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
LEAST_FOR_CORRELATION = 4  # Fisher's interval divides by sqrt(n - 3)
LEAST_FOR_MEAN = 2
LEAST_FOR_COEFFICIENT = 5


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value between the ends of its interval of confidence (95 %), from n observations."""

    value: float
    low: float
    high: float
    n: int


def pearson(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """The linear correlation, with Fisher's interval. None below 4 pairs, or where x or y does
    not vary."""
    if not _vary(x, y):
        return None
    return _fisher(_correlation(x, y), len(x), variance=1.0)


def spearman(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """The correlation of ranks, with Fisher's interval in the form of Bonett and Wright (2000),
    whose variance is larger by 1 + r^2 / 2. None as for `pearson`."""
    if not _vary(x, y):
        return None
    value = _correlation(_ranks(x), _ranks(y))
    return _fisher(value, len(x), variance=1 + value**2 / 2)


def mean(values: Sequence[float]) -> Estimate | None:
    """The mean with Student's interval. None below 2 values."""
    n = len(values)
    if n < LEAST_FOR_MEAN:
        return None
    from scipy.special import stdtrit

    middle = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1) / n)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    return Estimate(middle, middle - half, middle + half, n)


def least_squares(rows: Sequence[Sequence[float]], y: Sequence[float]) -> list[Estimate] | None:
    """What one more of each column adds to y, the others held equal, with Student's intervals; an
    intercept is fitted beside them. None with fewer than 5 rows a coefficient, or where the
    columns do not tell their effects apart."""
    if len(rows) < LEAST_FOR_COEFFICIENT * (1 + len(rows[0]) if rows else 1):
        return None
    from scipy.special import stdtrit

    x = np.column_stack([np.ones(len(rows)), np.asarray(rows, dtype=float)])
    n, k = x.shape
    found, _, rank, _ = np.linalg.lstsq(x, np.asarray(y, dtype=float), rcond=None)
    if rank < k:
        return None
    rest = np.asarray(y) - x @ found
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * float(rest @ rest) / (n - k))
    half = float(stdtrit(n - k, (1 + LEVEL) / 2)) * errors
    return [
        Estimate(float(value), float(value - h), float(value + h), n)
        for value, h in zip(found[1:], half[1:], strict=True)
    ]


def share(found: int, n: int) -> Estimate | None:
    """found of n, with Wilson's interval, which stays within 0 and 1. None for n = 0."""
    if not n:
        return None
    from scipy.special import ndtri

    z = float(ndtri((1 + LEVEL) / 2))
    value, widened = found / n, 1 + z**2 / n
    middle = (value + z**2 / (2 * n)) / widened
    half = z * math.sqrt(value * (1 - value) / n + z**2 / (4 * n**2)) / widened
    low = 0.0 if found == 0 else middle - half  # exactly, whatever rounding says
    high = 1.0 if found == n else middle + half
    return Estimate(value, low, high, n)


def _correlation(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Sequence[float]) -> Floats:
    """From 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def _vary(x: Sequence[float], y: Sequence[float]) -> bool:
    assert len(x) == len(y), "pairs are wanted"
    return len(x) >= LEAST_FOR_CORRELATION and len(set(x)) > 1 and len(set(y)) > 1


def _fisher(value: float, n: int, variance: float) -> Estimate:
    from scipy.special import ndtri

    if abs(value) >= 1 - 1e-12:  # on one line: no interval can be told from the point
        return Estimate(value, value, value, n)
    half = float(ndtri((1 + LEVEL) / 2)) * math.sqrt(variance / (n - 3))
    middle = math.atanh(value)
    return Estimate(value, math.tanh(middle - half), math.tanh(middle + half), n)


def ends(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
