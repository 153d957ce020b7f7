"""Who is ahead just now, before a selection says so. Both objectives are maximised.

nasd.search.pareto's answers for two objectives, in plain Python: its library takes a quarter of a
second to import, and a look at a search must not.
"""

from collections.abc import Sequence

from nasd.record.lifecycle import State
from nasd.record.state import Candidate, Snapshot
from nasd.search.pareto import Point


def ranks(points: Sequence[Point]) -> list[int]:
    """As nasd.search.pareto.ranks: 0 for those that no other dominates, and so on with those
    removed."""
    found = [0] * len(points)
    best: list[Point] = []  # of each front, the last point that joined it: the highest one yet
    order = sorted(range(len(points)), key=lambda at: (-points[at][1], -points[at][0]))
    for index in order:
        point = points[index]
        # Whoever joined before is no smaller in the second objective.
        low, high = 0, len(best)
        while low < high:
            middle = (low + high) // 2
            if best[middle][0] > point[0] or (
                best[middle][0] == point[0] and best[middle][1] > point[1]
            ):
                low = middle + 1
            else:
                high = middle
        if low == len(best):
            best.append(point)
        best[low] = point
        found[index] = low
    return found


def ever(snapshot: Snapshot) -> list[Candidate]:
    """The front of all that were ever scored, the baseline among them; the best quality first."""
    scored = [one for one in snapshot.candidates.values() if one.state is State.SCORED]
    points = [(snapshot.quality(one.id) or 0.0, snapshot.size(one.id)) for one in scored]
    found = [one for one, rank in zip(scored, ranks(points), strict=True) if rank == 0]
    return sorted(found, key=lambda one: (-(snapshot.quality(one.id) or 0.0), one.id))


def hypervolume(points: Sequence[Point]) -> float:
    """As nasd.search.pareto.hypervolume above (0, 0): the area that the points dominate."""
    area = height = 0.0
    for quality, size in sorted(points, key=lambda point: (-point[1], -point[0])):
        if quality > height:
            area += (quality - height) * size
            height = quality
    return area
