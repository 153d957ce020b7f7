"""Limits that candidates have to hold to: constraint domination (Deb et al. 2002)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract.config import parse
from nasd.contract.errors import NasdError
from nasd.contract.limits import Limit
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import DecisionKind
from nasd.search.pareto import ranks, survivors
from nasd.views.status import standing
from tests.conftest import drive, make_tick, small_dict, without_summaries

POINTS = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0, 3), st.sampled_from([0.0, 0.0, 0.1, 0.5])),
    min_size=1,
    max_size=20,
)


@given(POINTS)
def test_whoever_holds_the_limits_stands_before_whoever_does_not(
    drawn: list[tuple[float, float, float]],
) -> None:
    points, missed = [(a, b) for a, b, _ in drawn], [c for *_, c in drawn]
    found = ranks(points, missed)
    for one, by in zip(found, missed, strict=True):
        for other, other_by in zip(found, missed, strict=True):
            if by < other_by:
                assert one < other
    assert set(found) == set(range(max(found) + 1))
    within = [point for point, by in zip(points, missed, strict=True) if not by]
    alone = [rank for rank, by in zip(found, missed, strict=True) if not by]
    assert alone == ranks(within)
    assert standing.ranks(points, missed) == found


def test_nobody_who_breaks_a_limit_survives_in_place_of_one_who_does_not() -> None:
    points = [(10.0, 3.0), (80.0, 1.0), (70.0, 1.2)]
    assert set(survivors(points, 2)) != {1, 2}
    assert set(survivors(points, 2, [0.5, 0.0, 0.0])) == {1, 2}


@pytest.mark.parametrize(
    ("text", "value", "baseline", "missed"),
    [
        ("quality >= 60", 54.0, 80.0, 0.1),
        ("quality >= 60", 60.0, 80.0, 0.0),
        ("quality >= 90 % of the baseline", 36.0, 80.0, 0.5),
        ("quality>=90% of baseline", 36.0, None, 0.0),
        ("compression <= 2", 3.0, 1.0, 0.5),
    ],
)
def test_a_limit_is_missed_by_a_share_of_it(
    text: str, value: float, baseline: float | None, missed: float
) -> None:
    assert Limit.parse(text).missed(value, baseline) == pytest.approx(missed)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quality > 60", "is no limit; write it as"),
        ("speed >= 1", "there is no 'speed' to limit; take of quality, compression"),
        ("quality >= high", "is no limit"),
    ],
)
def test_what_is_no_limit_is_refused_by_its_key(text: str, words: str) -> None:
    data = small_dict()
    data["experiment"]["limits"] = [text]
    with pytest.raises(NasdError, match=r"experiment\.limits") as caught:
        parse(data, "c.toml")
    assert words in str(caught.value)


def test_a_search_with_a_limit_selects_by_it_and_records_by_how_much_each_misses(
    tmp_path: Path,
) -> None:
    data = small_dict(experiment__generations=2)
    data["experiment"]["limits"] = ["quality >= 40"]
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), parse(data, "c.toml"))
        drive(tick)
        found = tick.store.read()
    selections = [one for one in found.decisions if one.kind is DecisionKind.SELECT]
    assert any("missed" in one.payload for one in selections)
    for one in selections:
        missed = {int(c): by for c, by in one.payload.get("missed", {}).items()}
        chosen = set(one.payload["survivors"])
        if any(by and number in chosen for number, by in missed.items()):
            assert all(number in chosen for number, by in missed.items() if not by)
