"""Adaptive rates: each operator's share follows what its children gained over their parents.

Probability matching (Goldberg 1990; Thierens 2005) on recorded gains: no operator falls below a
floor, and none is judged by a child or two. Pure: the same record gives the same shares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TRUST = 4  # children's worth of the average gain that each operator starts with


@dataclass(frozen=True)
class Gain:
    """What a child was made by, and what it gained: the hypervolume that it adds to its parents'
    population, 0 where it adds none, or was cut, or failed."""

    operators: tuple[str, ...]
    gain: float


def shares(first: Mapping[str, float], gains: Sequence[Gain], floor: float) -> dict[str, float]:
    """The share of each operator, in all 1.

    first: the shares to begin with, not negative and some above 0; an operator of share 0 is never
    used. floor: the least share of any that is, at most one over their number.
    """
    used = {name: share for name, share in first.items() if share > 0}
    assert used and 0 <= floor * len(used) <= 1
    total = sum(used.values())
    average = sum(one.gain for one in gains) / len(gains) if gains else 0.0
    if average <= 0:
        weights = used
    else:
        weights = {}
        for name, share in used.items():
            mine = [one.gain for one in gains if name in one.operators]
            mean = (TRUST * average + sum(mine)) / (TRUST + len(mine))
            weights[name] = share / total * mean
    total = sum(weights.values())
    room = 1 - floor * len(used)
    return {name: floor + room * weights[name] / total if name in used else 0.0 for name in first}
