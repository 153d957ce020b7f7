"""In which order candidates of several objectives are preferred at a rung: pure.

By non-dominated rank of the loss and of what is known from birth, such as the size; within a front
the lowest loss first, and then always whoever lies farthest from those chosen, by what is known
from birth (an epsilon net, as Schmucker et al. 2021 take for asynchronous halving), so that small
candidates are not all cut for being small.
"""

import math
from collections.abc import Mapping, Sequence

from nasd.search.fidelity.promotion import Budget
from nasd.search.pareto import Point, ranks


def preferred(losses: Mapping[int, float], budget: Budget) -> list[int]:
    """The best first; of equals the lower id. Where nothing is known beside losses, by these."""
    ids = sorted(losses, key=lambda one: (losses[one], one))
    if not any(budget.beside.get(one) for one in ids):
        return ids
    rank = ranks([budget.point(one, losses[one]) for one in ids])
    fronts: dict[int, list[int]] = {}
    for one, front in zip(ids, rank, strict=True):
        fronts.setdefault(front, []).append(one)
    beside = _scaled({one: budget.beside.get(one, ()) for one in ids})
    return [one for front in sorted(fronts) for one in _spread(fronts[front], beside)]


def _spread(front: Sequence[int], beside: Mapping[int, Point]) -> list[int]:
    """front: by loss, then id."""
    chosen, left = [front[0]], list(front[1:])
    gap = {one: math.dist(beside[one], beside[front[0]]) for one in left}
    while left:
        nearest = max(gap[one] for one in left)
        farthest = next(one for one in left if gap[one] == nearest)
        chosen.append(farthest)
        left.remove(farthest)
        for one in left:
            gap[one] = min(gap[one], math.dist(beside[one], beside[farthest]))
    return chosen


def _scaled(points: Mapping[int, Point]) -> dict[int, Point]:
    """Each axis from 0 to 1."""
    axes = [(min(axis), max(axis)) for axis in zip(*points.values(), strict=True)]
    return {
        one: tuple(
            (value - low) / (high - low) if high > low else 0.0
            for value, (low, high) in zip(point, axes, strict=True)
        )
        for one, point in points.items()
    }
