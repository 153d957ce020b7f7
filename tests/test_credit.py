"""Shares of operators that follow what their children gained."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.search.variation.credit import FADE, FLOOR, Credit, credited, gain, shares

NAMES = ("narrow", "widen", "cross", "switch")
FIRST = {"narrow": 2.0, "widen": 1.0, "cross": 1.0, "switch": 0.0}
CREDITS = st.dictionaries(
    st.sampled_from(NAMES),
    st.builds(lambda tried, mean: Credit(tried, tried * mean), st.floats(0, 1e3), st.floats(0, 9)),
)


@given(CREDITS)
def test_shares_are_one_in_all_and_nobody_falls_below_the_floor(credits: dict[str, Credit]) -> None:
    found = shares(FIRST, credits)
    assert sum(found.values()) == pytest.approx(1)
    assert found["switch"] == 0
    assert all(found[name] >= FLOOR / 3 - 1e-12 for name in NAMES[:3])


def test_before_anything_is_known_shares_are_as_the_config_says_but_for_the_floor() -> None:
    found = shares(FIRST, {})
    assert found["narrow"] > found["widen"] == found["cross"] > 0


def test_who_gains_more_is_used_more() -> None:
    found = shares(FIRST, {"widen": Credit(10, 5.0), "cross": Credit(10, 0.0)})
    assert found["widen"] > shares(FIRST, {})["widen"]
    assert found["cross"] < shares(FIRST, {})["cross"]


def test_what_was_gained_long_ago_fades() -> None:
    once = credited({}, [(("narrow",), 1.0)])
    later = credited(credited(once, []), [(("widen", "widen"), 0.5)])
    assert later["narrow"] == Credit(FADE**2, FADE**2)
    assert later["widen"] == Credit(1.0, 0.5)  # a child counts once for each of its operators


def test_a_gain_is_the_share_of_hypervolume_that_a_child_adds_to_its_parents() -> None:
    parents = [(80.0, 1.0)]
    assert gain((80.0, 1.5), parents, (0.0, 0.5)) == pytest.approx(1.0)
    assert gain((79.0, 1.0), parents, (0.0, 0.5)) == 0
    assert gain(None, parents, (0.0, 0.5)) == 0
    assert gain((80.0, 1.5), [(0.0, 1.0)], (0.0, 0.5)) == 0  # nothing to measure by
