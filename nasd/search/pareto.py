"""The pieces of NSGA-II (Deb et al. 2002), as the thesis uses them (4.2.3 and 4.2.6).

Both objectives, (quality, size), are maximised. Only scored candidates get here, so a NaN or an
infinite objective is a programming error. Every tie ends at the lower index: hand the candidates
over in a fixed order, such as by id. moocore brings numpy along, and is imported where it is
called: commands that only look must start fast.
"""

import math
import random
from collections.abc import Collection, Sequence

Point = tuple[float, float]
QUALITY, SIZE = 0, 1  # the axes of a point


def ranks(points: Sequence[Point]) -> list[int]:
    """The front of each point: 0 for those that no other dominates, and so on with those removed.

    A point dominates another if it is nowhere worse and somewhere better, so equal points share
    their front.
    """
    _assert_finite(points)
    if not points:
        return []
    import moocore

    return [int(rank) for rank in moocore.pareto_rank(points, maximise=True)]


def crowding(
    points: Sequence[Point], ranks: Sequence[int], axes: Sequence[int] = (QUALITY, SIZE)
) -> list[float]:
    """The crowding distance of each point within its front: large where it is lonely.

    Along each axis, the gap between a point's two neighbours over the range of the front, summed
    over the axes; infinite for the two at the ends, so for every point of a front of one or two.
    An axis along which a whole front is equal has no ends and adds 0. Points that are equal along
    an axis stand in the order of their indices, each the neighbour of the next: the last of them
    is the end at the top of an axis, the first at the bottom, and those between others add 0.
    """
    _assert_finite(points)
    assert len(points) == len(ranks), "one rank per point"
    distances = [0.0] * len(points)
    for front in set(ranks):
        members = [index for index, rank in enumerate(ranks) if rank == front]
        if len(members) <= 2:
            for index in members:
                distances[index] = math.inf
            continue
        for axis in axes:
            line = sorted(members, key=lambda index: (points[index][axis], index))
            span = points[line[-1]][axis] - points[line[0]][axis]
            if span == 0:
                continue
            distances[line[0]] = distances[line[-1]] = math.inf
            for before, index, after in zip(line, line[1:], line[2:], strict=False):
                distances[index] += (points[after][axis] - points[before][axis]) / span
    return distances


def tournament(
    ranks: Sequence[int],
    crowding: Sequence[float],
    k: int,
    rng: random.Random,
    exclude: Collection[int] = (),
) -> int:
    """The winner, as an index, among k distinct contenders drawn at random (thesis 4.2.3).

    The lowest rank wins, then the larger crowding distance, then the lower index. `exclude`d
    indices do not take part; where fewer than k remain, all of those do.
    """
    pool = [index for index in range(len(ranks)) if index not in exclude]
    assert pool, "a tournament needs a contender"
    contenders = rng.sample(pool, min(k, len(pool)))
    return min(contenders, key=lambda index: (ranks[index], -crowding[index], index))


def survivors(points: Sequence[Point], mu: int) -> list[int]:
    """The best mu of parents and offspring together, as indices, best first (thesis 4.2.6).

    By rank, then the larger crowding distance on both axes, then the lower index.
    """
    rank = ranks(points)
    distance = crowding(points, rank)
    order = sorted(range(len(points)), key=lambda index: (rank[index], -distance[index], index))
    return order[:mu]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area that the points dominate above the reference.

    A point that is not better than the reference along both axes adds nothing.
    """
    _assert_finite((*points, reference))
    if not points:
        return 0.0
    import moocore

    return float(moocore.hypervolume(points, reference, maximise=True))


def _assert_finite(points: Sequence[Point]) -> None:
    for point in points:
        assert all(map(math.isfinite, point)), f"an objective of {point} is not a finite number"
