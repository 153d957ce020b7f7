"""The pieces of NSGA-II (Deb et al. 2002), as the thesis uses them (4.2.3 and 4.2.6).

A point has an axis for each objective of the experiment, and all are maximised
(nasd.search.objectives); untrained mutants and rungs have the loss as an axis, beside those
objectives that are known from birth, if any. A NaN or an infinite objective is a programming error,
and so are points of different lengths. Every tie ends at the lower index: hand the candidates over
in a fixed order, such as by id. moocore brings numpy along, and is imported where it is called:
commands that only look must start fast.
"""

import math
import random
from collections.abc import Collection, Sequence

Point = tuple[float, ...]


def ranks(points: Sequence[Point], missed: Sequence[float] = ()) -> list[int]:
    """The front of each point: 0 for those that no other dominates, and so on with those removed.

    A point dominates another if it is nowhere worse and somewhere better, so equal points share
    their front. missed: by how much each breaks the limits; whoever breaks none dominates all that
    do, and of these whoever breaks them by less (constraint domination, Deb et al. 2002).
    """
    _check(points)
    if not points:
        return []
    import moocore

    if not any(missed):
        return [int(rank) for rank in moocore.pareto_rank(points, maximise=True)]
    assert len(missed) == len(points), "a limit is missed by each point, or by none"
    within = [index for index, by in enumerate(missed) if not by]
    found = dict(zip(within, ranks([points[index] for index in within]), strict=True))
    behind = max(found.values(), default=-1) + 1
    beyond = sorted({by for by in missed if by})
    return [
        found.get(index, behind + beyond.index(by) if by else 0) for index, by in enumerate(missed)
    ]


def covers(one: Point, other: Point) -> bool:
    """Whether it dominates the other, or equals it."""
    return all(here >= there for here, there in zip(one, other, strict=True))


def crowding(
    points: Sequence[Point], ranks: Sequence[int], axes: Sequence[int] | None = None
) -> list[float]:
    """The crowding distance of each point within its front: large where it is lonely.

    Along each axis, the gap between a point's two neighbours over the range of the front, summed
    over the axes (None: all of them); infinite for the two at the ends, so for every point of a
    front of one or two. An axis along which a whole front is equal has no ends and adds 0. Points
    that are equal along an axis stand in the order of their indices, each the neighbour of the
    next (of three objectives or more, distinct points of one front can be): the last of them
    is the end at the top of an axis, the first at the bottom, and those between others add 0.
    """
    _check(points)
    assert len(points) == len(ranks), "one rank per point"
    distances = [0.0] * len(points)
    for front in set(ranks):
        members = [index for index, rank in enumerate(ranks) if rank == front]
        if len(members) <= 2:
            for index in members:
                distances[index] = math.inf
            continue
        for axis in range(len(points[0])) if axes is None else axes:
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


def survivors(points: Sequence[Point], mu: int, missed: Sequence[float] = ()) -> list[int]:
    """The best mu of parents and offspring together, as indices, best first (thesis 4.2.6).

    By rank, then the larger crowding distance on all axes, then the lower index.
    """
    rank = ranks(points, missed)
    distance = crowding(points, rank)
    order = sorted(range(len(points)), key=lambda index: (rank[index], -distance[index], index))
    return order[:mu]


def subset(
    points: Sequence[Point],
    count: int,
    missed: Sequence[float] = (),
    beside: Sequence[Point] = (),
) -> list[int]:
    """So many of the best, as indices: by rank, and of the last front those that together dominate
    much. Of it the one goes that adds least to the hypervolume, again and again (Beume et al. 2007;
    of equals the last), above the worst along each axis of that front and of the points beside it.

    So knees of the front come first, and an end that is bought dearly last. By distances, a long
    tail that nobody wants takes most of the places.
    """
    rank = ranks(points, missed)
    found: list[int] = []
    for front in sorted(set(rank)):
        members = [index for index, one in enumerate(rank) if one == front]
        reach = [*(points[index] for index in members), *beside]
        reference = [min(axis) for axis in zip(*reach, strict=True)]
        while len(members) > max(0, count - len(found)):
            line = [points[index] for index in members]
            adds = _contributions(line, reference)
            least = min(range(len(members)), key=lambda at: (adds[at], -members[at]))
            del members[least]
        found += members
    return found


def _contributions(front: Sequence[Point], reference: Sequence[float]) -> Sequence[float]:
    """By how much the hypervolume of a front is less without each of its points."""
    import moocore

    if len(reference) == 1:  # all are equal, which moocore does not take
        return [0.0] * len(front)
    found: Sequence[float] = moocore.hv_contributions(front, reference, maximise=True)
    return found


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area, or volume, that the points dominate above the reference.

    A point that is not better than the reference along every axis adds nothing.
    """
    _check((*points, reference))
    if not points:
        return 0.0
    import moocore

    return float(moocore.hypervolume(points, reference, maximise=True))


def _check(points: Sequence[Point]) -> None:
    for point in points:
        assert all(map(math.isfinite, point)), f"an objective of {point} is not a finite number"
    lengths = {len(point) for point in points}
    assert len(lengths) <= 1, f"points of {sorted(lengths)} objectives are not of one experiment"
    assert 0 not in lengths, "a point without an objective"
