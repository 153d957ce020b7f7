"""Numbers without an end: refused with their range, on the command line and in genotypes."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract.errors import NasdError
from nasd.contract.genotype import LARGEST, MOST_BLOCKS, Backbone, Genotype, parameters
from nasd.contract.readable import shown
from nasd.record.folders import StateFolder
from nasd.record.store import Store
from tests.conftest import BASELINE

HUGE = "9" * 5000
OPTIONS = [
    ["simulate", "--tflops"],
    ["simulate", "--slots"],
    ["simulate", "--mlm-sequences"],
    ["simulate", "--qa-questions"],
    ["simulate", "--runs"],
    ["status", "--interval"],
    ["log", "1", "--attempt"],
    ["log", "1", "--lines"],
    ["events", "--last"],
    ["tensorboard", "--port"],
]


@pytest.mark.parametrize("given", [HUGE, "-1", "1e400", "nan", "x" * 5000, ""], ids=len)
@pytest.mark.parametrize("command", OPTIONS, ids=" ".join)
def test_a_number_out_of_range_is_one_short_sentence_that_names_option_and_range(command, given):
    done = CliRunner().invoke(app, [*command, given])
    assert isinstance(done.exception, NasdError)
    sentence = str(done.exception)
    assert sentence.startswith(f"{command[-1]}: take a ")
    assert " from " in sentence and " to " in sentence
    assert len(sentence) < 150


@pytest.mark.parametrize("name", [HUGE, "9" * 25, "9" * 19])
@pytest.mark.parametrize("command", ["show", "log", "events", "retry", "cut"])
def test_a_candidates_number_beyond_64_bits_is_nobodys(store: Store, state, command, name):
    done = CliRunner().invoke(app, [command, name, "--state", str(state.path)])
    assert isinstance(done.exception, NasdError)
    assert str(done.exception).startswith("there is no candidate ")
    assert len(str(done.exception)) < 150


def test_a_budget_beyond_every_machine_is_refused(store: Store, state: StateFolder):
    for hours in (HUGE, "1e300", "1000000001", "-5"):
        arguments = ["budget", "--state", str(state.path), "--", hours]
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, NasdError)
        assert "up to 1,000,000,000" in str(done.exception)
        assert len(str(done.exception)) < 200


@pytest.mark.parametrize("count", [LARGEST + 1, 10**30, int("9" * 4000)], ids=lambda n: len(str(n)))
def test_a_genotype_with_a_size_that_no_machine_holds_is_none(count: int):
    for change in ({"heads": count}, {"ffns": [{"activation": "gelu", "sizes": [count]}]}):
        data = {"blocks": [{**BASELINE.to_json()["blocks"][0], **change}]}
        with pytest.raises(NasdError, match="is not a whole number from 1 to 1,000,000") as caught:
            Genotype.from_json(data)
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("blocks", "ffns", "sizes", "words"),
    [(1001, 1, 1, "1,001 blocks"), (1, 65, 1, "65 FFNs in a block"), (1, 1, 64, "65 layers")],
)
def test_a_genotype_of_more_parts_than_can_be_counted_is_none(blocks, ffns, sizes, words):
    ffn = {"activation": "relu", "sizes": [1] * sizes}
    with pytest.raises(NasdError, match=words):
        Genotype.from_json({"blocks": [{"heads": 1, "ffns": [ffn] * ffns}] * blocks})


def test_the_largest_genotypes_parameters_can_be_counted_in_the_database():
    ffn = {"activation": "relu", "sizes": [LARGEST] * 63}
    one = Genotype.from_json({"blocks": [{"heads": 1, "ffns": [ffn] * 64}]})
    assert parameters(one, Backbone(0, 0, 768)) * MOST_BLOCKS < 2**63


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
)


@given(ANYTHING, st.integers(2, 60))
def test_what_somebody_gave_is_shown_in_no_more_than_its_room(value: Any, most: int):
    text = shown(value, most)
    assert len(text) <= max(most, len("a number of about 1,000 digits"))
    if len(repr(value)) <= most:
        assert text == repr(value)


def test_a_number_of_thousands_of_digits_is_shown_by_its_length():
    assert shown(int("9" * 4000) * 10**1000) == "a number of about 5,000 digits"
    assert shown(-int("9" * 4000) * 10**1000) == "a number of about 5,000 digits"
    assert shown([10**4999]) == "a list too large to be shown"
    assert shown(math.inf) == "inf"
