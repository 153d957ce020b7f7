"""Who is ahead just now, before a selection says so. All objectives are maximised.

nasd.search.pareto's answers. Those for two objectives are given in plain Python: its library takes
a quarter of a second to import, and a look at a search must not. For more it is asked.
"""

from collections.abc import Sequence

from nasd.record.state import Candidate, Snapshot
from nasd.search import pareto
from nasd.search.pareto import Point


def ranks(points: Sequence[Point], missed: Sequence[float] = ()) -> list[int]:
    """As nasd.search.pareto.ranks: 0 for those that no other dominates, and so on with those
    removed."""
    if any(missed) or (points and len(points[0]) > 2):
        return pareto.ranks(points, missed)
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
    """The front of all that were ever scored, the baseline and its controls among them; the best
    quality first."""
    scored = [
        (one, point)
        for one in (*snapshot.individuals, *snapshot.controls)
        if (point := snapshot.point(one.id)) is not None
    ]
    order = ranks([point for _, point in scored])
    found = [one for (one, _), rank in zip(scored, order, strict=True) if rank == 0]
    return sorted(found, key=lambda one: (-(snapshot.quality(one.id) or 0.0), one.id))


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """As nasd.search.pareto.hypervolume."""
    if len(reference) > 2:
        return pareto.hypervolume(points, reference)
    area, (height, ground) = 0.0, reference
    for first, second in sorted(points, key=lambda point: (-point[1], -point[0])):
        if first > height and second > ground:
            area += (first - height) * (second - ground)
            height = first
    return area
