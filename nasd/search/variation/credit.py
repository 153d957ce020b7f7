"""Adaptive rates: each operator's share follows what its children gained over their parents.

Probability matching (Goldberg 1990; Thierens 2005) on recorded gains: no operator falls below a
floor, and none is judged by a child or two. Pure: the same record gives the same shares.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nasd.search.pareto import Point, hypervolume

TRUST = 4.0  # children's worth of the average gain that each operator starts with
FADE = 0.8  # of what earlier generations say, for each one since: operators pay at different times
NOTHING = 1e-9  # of a gain: what numbers are off by
FLOOR = 0.25  # of an even share is the least that any operator keeps


@dataclass(frozen=True)
class Credit:
    """Of an operator: for how many children it counts, and what they gained in all."""

    tried: float = 0.0
    gained: float = 0.0

    def after(self, gain: float) -> "Credit":
        return Credit(self.tried + 1, self.gained + gain)


def gain(child: Point | None, parents: Iterable[Point], reference: Point) -> float:
    """The hypervolume that a child adds to its own parents', as a share of it; 0 for one that was
    cut, failed, or is worse than them."""
    before = list(parents)
    volume = hypervolume(before, reference)
    if child is None or volume <= 0:
        return 0.0
    return hypervolume([*before, child], reference) / volume - 1


def credited(
    before: Mapping[str, Credit], children: Iterable[tuple[Iterable[str], float]]
) -> dict[str, Credit]:
    """The credits behind another generation. children: the operators by which each was made, and
    its gain."""
    found = {name: Credit(FADE * one.tried, FADE * one.gained) for name, one in before.items()}
    for operators, gained in children:
        for name in sorted(set(operators)):
            found[name] = found.get(name, Credit()).after(gained)
    return found


def shares(first: Mapping[str, float], credits: Mapping[str, Credit]) -> dict[str, float]:
    """The share of each operator, in all 1.

    first: the shares to begin with, not negative and some above 0; an operator of share 0 is never
    used.
    """
    used = {name: share for name, share in first.items() if share > 0}
    total = sum(used.values())
    assert total > 0
    known = {name: credits.get(name, Credit()) for name in used}
    tried = sum(one.tried for one in known.values())
    average = sum(one.gained for one in known.values()) / tried if tried else 0.0
    weights = used
    if average > NOTHING:
        weights = {
            name: share * (TRUST + known[name].gained / average) / (TRUST + known[name].tried)
            for name, share in used.items()
        }
    sum_of = sum(weights.values())
    least = FLOOR / len(used)
    room = 1 - FLOOR
    return {name: least + room * weights[name] / sum_of if name in used else 0.0 for name in first}
