"""Estimates with their intervals. None where there is too little to estimate from.

Without scipy, of which they would need two quantiles, and which takes a quarter of a second to
import, scipy.stats a second; the tests hold them against it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from nasd.search import correlation

LEVEL = 0.95
NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)
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
    return _fisher(float(np.corrcoef(x, y)[0, 1]), len(x), variance=1.0)


def spearman(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """The correlation of ranks, with Fisher's interval in the form of Bonett and Wright (2000),
    whose variance is larger by 1 + r^2 / 2. None as for `pearson`."""
    if not _vary(x, y):
        return None
    value = correlation.spearman(x, y)
    return _fisher(value, len(x), variance=1 + value**2 / 2)


def mean(values: Sequence[float]) -> Estimate | None:
    """The mean with Student's interval. None below 2 values."""
    n = len(values)
    if n < LEAST_FOR_MEAN:
        return None
    middle = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1) / n)
    half = student(n - 1) * error
    return Estimate(middle, middle - half, middle + half, n)


def least_squares(rows: Sequence[Sequence[float]], y: Sequence[float]) -> list[Estimate] | None:
    """What one more of each column adds to y, the others held equal, with Student's intervals; an
    intercept is fitted beside them. None with fewer than 5 rows a coefficient, or where the
    columns do not tell their effects apart."""
    if len(rows) < LEAST_FOR_COEFFICIENT * (1 + len(rows[0]) if rows else 1):
        return None
    x = np.column_stack([np.ones(len(rows)), np.asarray(rows, dtype=float)])
    n, k = x.shape
    found, _, rank, _ = np.linalg.lstsq(x, np.asarray(y, dtype=float), rcond=None)
    if rank < k:
        return None
    rest = np.asarray(y) - x @ found
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * float(rest @ rest) / (n - k))
    half = student(n - k) * errors
    return [
        Estimate(float(value), float(value - h), float(value + h), n)
        for value, h in zip(found[1:], half[1:], strict=True)
    ]


def share(found: int, n: int) -> Estimate | None:
    """found of n, with Wilson's interval, which stays within 0 and 1. None for n = 0."""
    if not n:
        return None
    z = NORMAL
    value, widened = found / n, 1 + z**2 / n
    middle = (value + z**2 / (2 * n)) / widened
    half = z * math.sqrt(value * (1 - value) / n + z**2 / (4 * n**2)) / widened
    low = 0.0 if found == 0 else middle - half  # exactly, whatever rounding says
    high = 1.0 if found == n else middle + half
    return Estimate(value, low, high, n)


@cache
def student(n: int) -> float:
    """Within so far of 0 on either side lie 95 % of Student's distribution with n degrees of
    freedom. By Newton's method, which comes from the normal distribution's side and cannot
    overshoot: the share within t grows ever slower."""
    found = NORMAL
    log = math.lgamma((n + 1) / 2) - math.lgamma(n / 2) - 0.5 * math.log(n * math.pi)
    while True:
        density = math.exp(log - (n + 1) / 2 * math.log1p(found**2 / n))
        step = (LEVEL - _within(found, n)) / (2 * density)
        found += step
        if step <= 1e-14 * found:
            return found


def _within(t: float, n: int) -> float:
    """The share of Student's distribution between -t and t (Abramowitz and Stegun, 26.7.3, 26.7.4):
    a series that ends."""
    angle = math.atan(t / math.sqrt(n))
    squared = math.cos(angle) ** 2
    odd = n % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, n, 2):
        total += term
        term *= squared * k / (k + 1)
    inner = math.sin(angle) * total
    return 2 / math.pi * (angle + inner) if odd else inner


def _vary(x: Sequence[float], y: Sequence[float]) -> bool:
    assert len(x) == len(y), "pairs are wanted"
    return len(x) >= LEAST_FOR_CORRELATION and len(set(x)) > 1 and len(set(y)) > 1


def _fisher(value: float, n: int, variance: float) -> Estimate:
    if abs(value) >= 1 - 1e-12:  # on one line: no interval can be told from the point
        return Estimate(value, value, value, n)
    half = NORMAL * math.sqrt(variance / (n - 3))
    middle = math.atanh(value)
    return Estimate(value, math.tanh(middle - half), math.tanh(middle + half), n)


def ends(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
