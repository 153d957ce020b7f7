"""Rank correlation, by which a loss is held against what it is to tell of."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import correlation


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """The correlation of the ranks of two series of one length, neither of which is constant."""
    return max(-1.0, min(1.0, correlation(ranks(x), ranks(y))))  # by rounding it may be beyond


def ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of theirs."""
    order = sorted(values)
    return [(bisect_left(order, one) + bisect_right(order, one) + 1) / 2 for one in values]
