"""A quality comes with its standard error, and ranks that rest on noise are told."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract import squad
from nasd.contract.squad import Question
from nasd.search import noise
from nasd.views.report.findings import Findings
from nasd.views.report.page import _noise
from nasd.views.status.as_json import as_json
from nasd.views.status.facts import read
from nasd.worker.tasks import labelled, scores
from tests.conftest import all_succeed, drive, make_tick, small_config


def asked(count: int, contexts: int) -> list[Question]:
    return [
        Question(str(n), "t", f"context {n % contexts}", "?", (("yes", 0),)) for n in range(count)
    ]


def test_the_error_of_independent_questions_is_that_of_their_mean():
    drawn, questions = random.Random(3), asked(400, 400)
    right = {one.id: "yes" if drawn.random() < 0.7 else "no" for one in questions}
    mean = squad.score(right, questions)["exact_match"] / 100
    expected = 100 * math.sqrt(mean * (1 - mean) / 399)
    assert squad.error(right, questions) == pytest.approx(expected, rel=0.01)


def test_questions_of_one_context_that_are_right_together_tell_less():
    drawn, questions = random.Random(3), asked(400, 20)
    fate = {n: drawn.random() < 0.7 for n in range(20)}
    together = {one.id: "yes" if fate[int(one.id) % 20] else "no" for one in questions}
    alone = squad.error(together, asked(400, 400))
    assert squad.error(together, questions) > 3 * alone


def test_one_context_alone_and_nobody_wrong_have_an_error_too():
    questions = asked(4, 1)
    assert squad.error({"0": "yes", "1": "yes"}, questions) == pytest.approx(25.0)
    assert squad.error({one.id: "yes" for one in questions}, questions) == 0.0


def test_a_bootstrapped_error_is_that_of_the_mean_where_the_quality_is_one():
    drawn = np.random.default_rng(1)
    right = drawn.random(500) < 0.8
    found = labelled.error(500, lambda rows: float(right[rows].mean()))
    mean = right.mean()
    assert found == pytest.approx(math.sqrt(mean * (1 - mean) / 500), rel=0.2)
    assert found == labelled.error(500, lambda rows: float(right[rows].mean()))  # the same samples


def test_entities_that_are_counted_by_text_give_the_scores_of_all_texts():
    wanted = [["B-A", "I-A", "O"], ["O", "B-B", "O"], ["B-A", "O", "B-B"]]
    told = [["B-A", "I-A", "O"], ["B-B", "O", "O"], ["B-A", "O", "O"]]
    counts = scores.counts_of_entities(wanted, told)
    assert counts.tolist() == [[1, 1, 1], [0, 1, 1], [1, 1, 2]]  # right, told and wanted
    assert scores.of_counts(*counts.sum(0).tolist())["f1"] == pytest.approx(4 / 7)


MEASURED = st.builds(
    noise.Measured, st.floats(0, 100), st.floats(0, 5), st.tuples(st.floats(1, 5), st.floats(1, 5))
)


@given(st.dictionaries(st.integers(0, 9), MEASURED, min_size=1))
def test_a_rank_rests_on_noise_only_of_those_who_are_as_good_in_all_else(pool):
    for candidate, mine in pool.items():
        for other in noise.unsure(candidate, pool):
            its = pool[other]
            assert other != candidate
            assert all(one >= here for one, here in zip(its.beside, mine.beside, strict=True))
            assert abs(its.quality - mine.quality) <= 1.96 * (its.error + mine.error)
    sure = {one: noise.Measured(n, 0.0, its.beside) for n, (one, its) in enumerate(pool.items())}
    assert not any(noise.unsure(one, sure) for one in sure)


def test_views_tell_errors_and_go_on_without_those_of_earlier_versions(state):
    def script(spec, before):
        seconds, outcome = all_succeed(spec, before)
        if "f1" in outcome.metrics and spec.candidate % 2 == 0:  # as if the others were of before
            metrics = {**outcome.metrics, "quality_error": 50.0}
            outcome = outcome.model_copy(update={"metrics": metrics})
        return seconds, outcome

    tick = make_tick(state, small_config(), script)
    found = drive(tick)
    told = as_json(read(state.path, now=tick.clock()))
    json.dumps(told)
    rows = {one["id"]: one for one in told["candidates"]}
    scored = [one for one in rows.values() if one["quality"] is not None]
    assert {one["quality_error"] for one in scored if one["id"] % 2 == 0} == {50.0}
    assert {one["quality_error"] for one in scored if one["id"] % 2} == {None}
    unsure = {one["id"]: one["rank_within_noise_of"] for one in scored}
    assert any(unsure.values())
    for one, others in unsure.items():
        assert all(rows[other]["size"] >= rows[one]["size"] for other in others)
        assert not one % 2 or not others
    numbers = found.survivors(2)
    words = _noise(Findings(found, tick.clock()))
    assert ("Within noise" in words) is any(found.unsure(one, numbers) for one in numbers)
    tick.store.close()
