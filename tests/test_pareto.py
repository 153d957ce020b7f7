import itertools
import math
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.search.pareto import (
    Point,
    covers,
    crowding,
    hypervolume,
    ranks,
    subset,
    survivors,
    tournament,
)

INF = math.inf
SIZE = 1  # the axis that the thesis's tournaments go by

# A coarse grid makes ties and duplicates common; the floats are what quality and size look like.
coarse = st.tuples(st.integers(-3, 3).map(float), st.integers(-3, 3).map(float))
fine = st.tuples(st.floats(0, 100), st.floats(0.01, 10))
several = st.integers(2, 5).flatmap(
    lambda size: st.lists(st.tuples(*[st.integers(-3, 3).map(float)] * size), max_size=14)
)
flat = st.lists(coarse, max_size=14) | st.lists(fine, max_size=14)
points = flat | several
# No two are equal along an axis. Of two objectives, distinct points of a front never are.
untied = st.tuples(st.integers(2, 5), st.integers(0, 12)).flatmap(
    lambda shape: st.tuples(*[st.permutations(range(shape[1]))] * shape[0]).map(
        lambda axes: [tuple(map(float, point)) for point in zip(*axes, strict=True)]
    )
)


def dominates(one: Point, other: Point) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and one != other


def peel(points: list[Point]) -> list[int]:
    """Fronts by the definition: what nothing left dominates is removed, again and again."""
    found: dict[int, int] = {}
    for front in itertools.count():
        left = [index for index in range(len(points)) if index not in found]
        if not left:
            return [found[index] for index in range(len(points))]
        for index in left:
            if not any(dominates(points[other], points[index]) for other in left):
                found[index] = front
    raise AssertionError


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1.0, 1.0)], [0]),
        ([(1.0, 2.0), (2.0, 1.0)], [0, 0]),
        ([(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)], [2, 1, 0]),
        ([(2.0, 1.0), (1.0, 1.0)], [0, 1]),  # a tie on one axis still dominates
        ([(1.0, 1.0), (1.0, 1.0), (0.0, 1.0), (0.0, 1.0)], [0, 0, 1, 1]),  # equals share a front
        ([(-0.0, 1.0), (0.0, 1.0)], [0, 0]),
    ],
)
def test_ranks(points: list[Point], expected: list[int]) -> None:
    assert ranks(points) == expected


@given(points)
@settings(deadline=None)
def test_ranks_agree_with_the_definition(points: list[Point]) -> None:
    assert ranks(points) == peel(points)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1.0, 1.0)], [INF]),
        ([(1.0, 2.0), (2.0, 1.0)], [INF, INF]),
        ([(1.0, 1.0), (1.0, 1.0)], [INF, INF]),
        ([(0.0, 4.0), (1.0, 3.0), (4.0, 0.0)], [INF, 2.0, INF]),
        ([(0.0, 10.0), (1.0, 9.0), (5.0, 4.0), (10.0, 0.0)], [INF, 0.5 + 0.6, 0.9 + 0.9, INF]),
        ([(1.0, 1.0)] * 3, [0.0, 0.0, 0.0]),  # no range, no ends
        # Equal points inside: the outer two of them have a gap to one side, the middle one none.
        (
            [(0.0, 4.0), (2.0, 2.0), (2.0, 2.0), (2.0, 2.0), (4.0, 0.0)],
            [INF, 1.0, 0.0, 1.0, INF],
        ),
        # Equal points at both ends: the axes disagree about which of them is the end.
        ([(0.0, 4.0), (0.0, 4.0), (0.0, 4.0), (4.0, 0.0)], [INF, 0.0, INF, INF]),
    ],
)
def test_crowding_within_one_front(points: list[Point], expected: list[float]) -> None:
    assert crowding(points, [0] * len(points)) == pytest.approx(expected)


def test_of_equal_points_the_first_is_the_end_below_and_the_last_the_end_above() -> None:
    points = [(0.0, 4.0), (0.0, 4.0), (4.0, 0.0), (4.0, 0.0)]
    assert crowding(points, [0] * 4, axes=(SIZE,)) == [1.0, INF, INF, 1.0]


def test_crowding_looks_at_each_front_alone() -> None:
    points = [(0.0, 4.0), (9.0, 9.0), (1.0, 3.0), (4.0, 0.0)]
    assert crowding(points, [1, 0, 1, 1]) == [INF, INF, 2.0, INF]


def test_crowding_on_the_size_axis_alone_ignores_quality() -> None:
    sizes = [1.0, 1.5, 3.0, 5.0]
    for qualities in itertools.permutations([0.0, 1.0, 50.0, 100.0]):
        points = list(zip(qualities, sizes, strict=True))
        assert crowding(points, [0] * 4, axes=(SIZE,)) == [INF, 0.5, 0.875, INF]


@given(flat | untied, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_crowding_of_distinct_points_knows_no_order(
    points: list[Point], rng: random.Random
) -> None:
    points = list(dict.fromkeys(points))
    before = dict(zip(points, crowding(points, ranks(points)), strict=True))
    rng.shuffle(points)
    after = dict(zip(points, crowding(points, ranks(points)), strict=True))
    assert after == before


@given(points)
@settings(deadline=None)
def test_crowding_is_a_number_and_the_best_on_an_axis_are_infinite(points: list[Point]) -> None:
    distances = crowding(points, ranks(points))
    assert all(distance >= 0 for distance in distances)  # so none is NaN
    front = [
        (p, d) for p, d, rank in zip(points, distances, ranks(points), strict=True) if not rank
    ]
    if len({point for point, _ in front}) > 1:
        for axis in range(len(points[0])):
            best = max(point[axis] for point, _ in front)
            assert any(d == INF for point, d in front if point[axis] == best)


@pytest.mark.parametrize(
    ("ranks", "crowding", "winner"),
    [
        ([0], [0.0], 0),
        ([1, 0, 2], [INF, 0.0, INF], 1),  # rank before crowding
        ([0, 0, 0], [1.0, 3.0, 2.0], 1),
        ([0, 0, 0], [1.0, INF, 2.0], 1),
        ([0, 0, 0], [INF, 1.0, INF], 0),  # a tie: the lower index
        ([0, 0, 0], [0.0, 0.0, 0.0], 0),
    ],
)
def test_a_tournament_of_all_takes_the_best(
    ranks: list[int], crowding: list[float], winner: int
) -> None:
    for seed in range(20):
        for k in (len(ranks), 99):
            assert tournament(ranks, crowding, k, random.Random(seed)) == winner


def test_a_tournament_of_one_is_a_fair_draw() -> None:
    rng = random.Random(0)
    wins = [tournament([0, 1, 2, 3], [0.0] * 4, 1, rng) for _ in range(4000)]
    assert all(900 < wins.count(index) < 1100 for index in range(4))


def test_contenders_are_distinct() -> None:
    # With k = 3 of 5, the best two of the others can never both be missing: the worst two lose.
    rng = random.Random(0)
    wins = [tournament([0, 1, 2, 3, 4], [0.0] * 5, 3, rng) for _ in range(4000)]
    assert set(wins) == {0, 1, 2}
    assert wins.count(0) / 4000 == pytest.approx(6 / 10, abs=0.03)  # C(4,2) / C(5,3)


def test_the_excluded_do_not_take_part() -> None:
    rng = random.Random(0)
    assert tournament([0, 1, 2], [0.0] * 3, 3, rng, exclude={0}) == 1
    assert tournament([0, 1, 2], [0.0] * 3, 3, rng, exclude=(0, 1)) == 2
    with pytest.raises(AssertionError):
        tournament([0], [0.0], 3, rng, exclude={0})


@pytest.mark.parametrize(
    ("points", "mu", "expected"),
    [
        ([], 3, []),
        ([(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)], 2, [2, 1]),
        ([(1.0, 1.0), (2.0, 2.0)], 5, [1, 0]),  # fewer than mu: all of them
        ([(1.0, 1.0)] * 4, 2, [0, 1]),  # duplicates: the lower index
        # The front is cut by crowding: both ends, then the loneliest.
        ([(0.0, 10.0), (1.0, 9.0), (5.0, 4.0), (10.0, 0.0)], 3, [0, 3, 2]),
        # A whole front goes before the best of the next, however lonely.
        ([(0.0, 10.0), (5.0, 5.0), (10.0, 0.0), (-9.0, -9.0), (4.0, 4.0)], 4, [0, 2, 1, 4]),
    ],
)
def test_survivors(points: list[Point], mu: int, expected: list[int]) -> None:
    assert survivors(points, mu) == expected


@given(points, st.integers(0, 16))
@settings(deadline=None)
def test_no_survivor_ranks_behind_one_that_is_left_out(points: list[Point], mu: int) -> None:
    chosen = survivors(points, mu)
    assert len(chosen) == len(set(chosen)) == min(mu, len(points))
    rank = ranks(points)
    left = [rank[index] for index in range(len(points)) if index not in chosen]
    assert max((rank[index] for index in chosen), default=0) <= min(left, default=len(points))


@given(points, st.integers(1, 16))
@settings(deadline=None)
def test_survivors_keep_their_rank_among_themselves(points: list[Point], mu: int) -> None:
    chosen = survivors(points, mu)
    rank = ranks(points)
    assert ranks([points[index] for index in chosen]) == [rank[index] for index in chosen]


def sweep(points: list[Point], reference: Point) -> float:
    """From the best quality downwards, the strip by which each point rises above the last."""
    area, height = 0.0, reference[1]
    for quality, size in sorted(points, reverse=True):
        if quality > reference[0] and size > height:
            area += (quality - reference[0]) * (size - height)
            height = size
    return area


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0.0),
        ([(2.0, 3.0)], 6.0),
        ([(2.0, 3.0), (2.0, 3.0)], 6.0),
        ([(2.0, 1.0), (1.0, 2.0)], 3.0),
        ([(2.0, 1.0), (1.0, 1.0)], 2.0),  # the dominated adds nothing
        ([(0.0, 5.0), (5.0, 0.0)], 0.0),  # on the reference's lines
        ([(2.0, 3.0), (-1.0, 9.0), (9.0, -1.0), (-1.0, -1.0)], 6.0),
    ],
)
def test_hypervolume(points: list[Point], expected: float) -> None:
    assert hypervolume(points, (0.0, 0.0)) == expected


@given(flat, coarse)
@settings(deadline=None)
def test_hypervolume_agrees_with_a_sweep(points: list[Point], reference: Point) -> None:
    assert hypervolume(points, reference) == pytest.approx(sweep(points, reference))


@given(flat, coarse)
@settings(deadline=None)
def test_those_that_others_cover_add_nothing(points: list[Point], reference: Point) -> None:
    front: list[Point] = []
    for point in points:
        if not any(covers(one, point) for one in front):
            front = [one for one in front if not covers(point, one)] + [point]
    assert sorted(front) == sorted({p for p, r in zip(points, ranks(points), strict=True) if not r})
    assert hypervolume(front, reference) == pytest.approx(hypervolume(points, reference))


@given(
    st.integers(2, 5).flatmap(
        lambda size: st.lists(
            st.tuples(*[st.integers(0, 4).map(float)] * size), min_size=1, max_size=8
        )
    )
)
@settings(deadline=None)
def test_hypervolume_counts_the_dominated_cells_in_any_number_of_dimensions(
    points: list[Point],
) -> None:
    *points, reference = points
    cells = itertools.product(*(range(int(low), 4) for low in reference))
    dominated = sum(any(all(x > c for x, c in zip(p, cell, strict=True)) for p in points)
        for cell in cells)  # fmt: skip
    assert hypervolume(points, reference) == pytest.approx(dominated)


@given(several, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_axes_changes_neither_ranks_nor_crowding(
    points: list[Point], rng: random.Random
) -> None:
    axes = list(range(len(points[0]) if points else 2))
    rng.shuffle(axes)
    turned = [tuple(point[axis] for axis in axes) for point in points]
    assert ranks(turned) == ranks(points)
    assert crowding(turned, ranks(points)) == pytest.approx(crowding(points, ranks(points)))
    for at, axis in enumerate(axes):
        assert crowding(turned, ranks(points), axes=(at,)) == crowding(
            points, ranks(points), axes=(axis,)
        )


@given(several)
@settings(deadline=None)
def test_an_axis_on_which_all_are_equal_changes_nothing(points: list[Point]) -> None:
    points = [point[:4] for point in points]
    wider = [(*point, 7.0) for point in points]
    assert ranks(wider) == ranks(points)
    assert crowding(wider, ranks(points)) == crowding(points, ranks(points))
    assert survivors(wider, 5) == survivors(points, 5)


def test_points_of_different_lengths_or_of_no_objective_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="not of one experiment"):
        ranks([(1.0, 2.0), (1.0, 2.0, 3.0)])
    with pytest.raises(AssertionError, match="not of one experiment"):
        hypervolume([(1.0, 2.0, 3.0)], (0.0, 0.0))
    with pytest.raises(AssertionError, match="without an objective"):
        survivors([()], 1)


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(1, 8))
def test_along_one_axis_the_best_is_taken_and_of_equals_the_first(values, count) -> None:
    points = [(float(one),) for one in values]
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    assert survivors(points, count) == order[:count]
    assert subset(points, count) == order[:count]
    assert hypervolume(points, (0.0,)) == max(values, default=0)


@pytest.mark.parametrize("wrong", [math.nan, INF, -INF])
def test_an_objective_that_is_no_number_is_a_bug(wrong: float) -> None:
    for points in ([(1.0, wrong)], [(1.0, 1.0), (wrong, 1.0)]):
        with pytest.raises(AssertionError, match="not a finite number"):
            ranks(points)
        with pytest.raises(AssertionError, match="not a finite number"):
            crowding(points, [0] * len(points))
        with pytest.raises(AssertionError, match="not a finite number"):
            survivors(points, 1)
        with pytest.raises(AssertionError, match="not a finite number"):
            hypervolume(points, (0.0, 0.0))
    with pytest.raises(AssertionError, match="not a finite number"):
        hypervolume([(1.0, 1.0)], (0.0, wrong))


def test_importing_it_brings_neither_numpy_nor_moocore() -> None:
    code = "import sys, nasd.search.pareto; sys.exit(bool({'numpy', 'moocore'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(several, st.integers(0, 12))
def test_a_subset_is_of_the_best_ranks_and_as_many_as_asked(
    points: list[Point], count: int
) -> None:
    found = subset(points, count)
    assert len(set(found)) == len(found) == min(count, len(points))
    rank = ranks(points)
    worst = max((rank[index] for index in found), default=-1)
    assert all(index in found for index, one in enumerate(rank) if one < worst)


@settings(max_examples=30)
@given(st.lists(coarse, min_size=1, max_size=8), st.integers(1, 4))
def test_of_a_front_nearly_as_much_is_dominated_as_any_so_many_could(
    points: list[Point], count: int
) -> None:
    front = [point for point, rank in zip(points, ranks(points), strict=True) if rank == 0]
    reference = (-4.0, -4.0)
    found = [front[index] for index in subset(front, count, beside=[reference])]
    most = max(
        hypervolume(some, reference)
        for some in itertools.combinations(front, min(count, len(front)))
    )
    assert hypervolume(found, reference) >= 0.8 * most


def test_of_two_equal_points_that_contribute_nothing_one_is_taken_all_the_same() -> None:
    """findings/moocore-equals-contribute-nothing.sh"""
    points = [(3.0, 3.0), (3.0, 3.0), (1.0, 1.0)]
    assert subset(points, 1) == [0]
    assert subset(points, 2) == [0, 1]


def test_knees_of_a_front_come_before_its_ends() -> None:
    # (-loss, how small): a quarter smaller for nothing; half for much; the end for nearly all.
    front = [(-2.1, 1.1), (-2.11, 1.2), (-2.15, 1.5), (-2.7, 2.0), (-3.4, 2.1), (-5.0, 2.2)]
    assert subset(front, 2, beside=[(-2.08, 1.0)]) == [2, 3]
    assert subset(front, 4, beside=[(-2.08, 1.0)]) == [1, 2, 3, 4]
    assert subset([front[0]] * 3, 2) == [0, 1]


def test_who_breaks_a_limit_is_not_taken_before_those_who_break_none() -> None:
    points = [(0.0, 9.0), (4.0, 5.0), (9.0, 0.0), (20.0, 20.0)]
    assert subset(points, 3, [0.0, 0.0, 0.0, 1.0]) == [0, 1, 2]
