"""Adaptive rates of operators."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.credit import Gain, shares

NAMES = ["widen", "narrow", "cross", "add_block"]
FIRST = st.dictionaries(st.sampled_from(NAMES), st.floats(0.1, 5), min_size=1)
GAINS = st.lists(
    st.builds(
        Gain, st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple), st.floats(0, 50)
    ),
    max_size=30,
)


@given(FIRST, GAINS, st.floats(0, 0.25))
def test_shares_add_up_to_one_and_none_falls_below_the_floor(first, gains, floor):
    found = shares(first, gains, floor)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= floor - 1e-9


@given(FIRST, st.floats(0, 0.2))
def test_without_any_gain_the_shares_are_those_of_the_config(first, floor):
    gains = [Gain((name,), 0.0) for name in first]
    found = shares(first, gains, 0.0)
    total = sum(first.values())
    assert found == pytest.approx({name: share / total for name, share in first.items()})


def test_what_gains_more_is_used_more_and_a_single_lucky_child_does_not_decide():
    first = dict.fromkeys(NAMES, 1.0)
    lucky = shares(first, [Gain(("widen",), 4.0), *[Gain(("narrow",), 1.0)] * 3], 0.05)
    assert lucky["widen"] > lucky["narrow"]
    assert lucky["widen"] < 0.5
    steady = shares(first, [*[Gain(("widen",), 4.0)] * 20, *[Gain(("narrow",), 0.0)] * 20], 0.05)
    assert steady["widen"] > lucky["widen"]
    assert steady["narrow"] < 0.15


def test_an_operator_that_the_config_leaves_out_is_never_used():
    assert shares({"widen": 1.0, "cross": 0.0}, [Gain(("cross",), 9.0)], 0.1)["cross"] == 0.0
