"""How values are written."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from nasd.contract import readable


@pytest.mark.parametrize(
    ("write", "values", "shown"),
    [
        (readable.number, (-1234.56, -0.04, None), ("−1,234.6", "0.0", "–")),
        (readable.signed, (0.5, -0.5, 0.001, -0.001), ("+0.50", "−0.50", "0.00", "0.00")),
        (readable.hours, (0.0391, 2.5, 13.64, 6450.2), ("0.039", "2.50", "13.6", "6,450")),
        (readable.rate, (None, 3.333, 33.33, 3333.0), ("", "3.33", "33.3", "3,333")),
        (readable.parameters, (66_362_880, 812_345), ("66.36 M", "812 k")),
        (readable.size, (999, 1500, 2.5e6, 12.34e9), ("999 bytes", "1.5 kB", "2.5 MB", "12.3 GB")),
        (
            readable.duration,
            (-3, 5, 300, 4000, 300_000),
            ("0 s", "5 s", "5 min 00 s", "1 h 06 min", "3 d 11 h"),
        ),
        (
            readable.about,
            (0.2, 61, 3000, 7000, 100_000, 274_000),
            ("1 s", "61 s", "50 min", "1 h 50 min", "27 h 40 min", "3 d 4 h"),
        ),
        (readable.listed, ([4], [1, 2], [1, 2, 3, 7, 9]), ("4", "1 and 2", "1 to 3, 7 and 9")),
    ],
)
def test_each_value_has_one_form(
    write: Callable[[Any], str], values: tuple[Any, ...], shown: tuple[str, ...]
) -> None:
    assert tuple(map(write, values)) == shown


def test_nouns_follow_their_number() -> None:
    assert [readable.counted(n, "candidate") for n in (0, 1, 1024)] == [
        "0 candidates", "1 candidate", "1,024 candidates",
    ]  # fmt: skip


def test_what_comes_soon_is_told_by_the_hour_and_later_by_the_day() -> None:
    noon = time.mktime((2024, 3, 4, 12, 0, 0, 0, 0, -1))
    told = [readable.soon(noon + 3600 * hours, noon) for hours in (1, 24, 24 * 20)]
    assert told == ["13:00", "Tue 12:00", "Sun 24 Mar"]


def test_a_curve_is_drawn_from_its_lowest_value_to_its_highest() -> None:
    assert readable.sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert readable.sparkline([1.0, float("nan"), 2.0]) == "▁ █"
    assert readable.sparkline([5.0]) == "▁"
    assert len(readable.sparkline(list(range(100)), 10)) == 10


def test_parameters_are_told_as_a_share_of_the_baselines_so_that_less_is_smaller():
    assert readable.of_baseline(1.0) == "100.0 %"
    assert readable.of_baseline(0.439) == "227.8 %"
    assert readable.of_baseline(2.0) == "50.0 %"
