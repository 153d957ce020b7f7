import itertools
import math
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.search.pareto import SIZE, Point, crowding, hypervolume, ranks, survivors, tournament

INF = math.inf

# A coarse grid makes ties and duplicates common; the floats are what quality and size look like.
coarse = st.tuples(st.integers(-3, 3).map(float), st.integers(-3, 3).map(float))
fine = st.tuples(st.floats(0, 100), st.floats(0.01, 10))
points = st.lists(coarse, max_size=14) | st.lists(fine, max_size=14)


def dominates(one: Point, other: Point) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other


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


@given(points, st.randoms(use_true_random=False))
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
        for axis in (0, 1):
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


@given(points, coarse)
@settings(deadline=None)
def test_hypervolume_agrees_with_a_sweep(points: list[Point], reference: Point) -> None:
    assert hypervolume(points, reference) == pytest.approx(sweep(points, reference))


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
