"""A promotion may go by another loss than the rung's own: the one that has told most so far."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract.config import parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.contract.protocol import Outcome, Spec
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import DecisionKind
from nasd.record.state import Snapshot
from nasd.search.fidelity.predictor import LEAST, Metric, best, rank_correlation
from nasd.search.fidelity.promotion import Promotion
from nasd.views.dossier import compile_dossier
from nasd.views.report.statistics import spearman
from tests.conftest import (
    drive,
    make_tick,
    small_config,
    small_dict,
    story,
    succeeded,
    without_summaries,
)

RUNGS = [{"at": 0.5, "keep": 0.5}]
BEST = {
    "promotion": {"rule": "halving", "metric": "best"},
    "stages__finetune__rungs": RUNGS,
    "population__mu": LEAST,
    "population__lambda": 8,
}


@pytest.fixture(autouse=True)
def _quick():
    with without_summaries():
        yield


def early_tells(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    """Quality follows from the loss after pretrain_1; what fine-tuning shows half-way is noise."""
    outcome = succeeded(spec)
    if spec.stage is None:
        return 30.0, outcome
    luck = random.Random(Genotype.from_json(spec.genotype).hash)
    quality, noise = luck.uniform(40, 80), luck.random()
    if spec.stage.train == "none":
        scores = {"exact_match": quality, "f1": quality}
        return 30.0, outcome.model_copy(update={"metrics": {"loss": 1.0, **scores}})
    loss = 3 - quality / 100 if spec.stage.name == "pretrain_1" else 1 + noise
    told = {"metrics": {"loss": loss}, "curve": [(5, loss + 1), (10, loss)]}
    return 30.0, outcome.model_copy(update=told)


def searched(state: StateFolder, **changes: Any) -> Any:
    tick = make_tick(state, small_config(**{**BEST, **changes}), early_tells)
    assert drive(tick).experiment.state == "complete"
    return tick


def at_the_rung(found: Snapshot) -> list[Promotion]:
    return [one.promotion for one in found.cutoffs if one.stage == "finetune@0.5"]


@pytest.fixture(scope="module")
def by_best(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with without_summaries(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        return searched(StateFolder(tmp_path_factory.mktemp("best") / "state"))


def test_at_a_rung_the_loss_that_has_told_most_so_far_decides(by_best: Any) -> None:
    found = by_best.store.read()
    made = at_the_rung(found)
    assert len(made) == 2
    for one in made:
        assert one.metric == "pretrain_1"
        assert "by the loss pretrain_1, whose rank correlation with quality is 1.00" in one.rule
        for candidate, loss in one.losses.items():
            assert loss == found.results[candidate, "pretrain_1"].last_loss
            own = found.results[candidate, "finetune@0.5"]
            assert one.curves[candidate][-1][1] == own.last_loss  # curves are as they were
        best_of = min(one.losses, key=lambda candidate: one.losses[candidate])
        assert best_of in one.kept
    for one in found.cutoffs:
        if one.stage == "pretrain_0":  # nothing else is known there
            assert one.promotion.metric == ""


def test_what_it_rests_on_is_recorded_with_the_selection(by_best: Any) -> None:
    found = by_best.store.read()
    counts = []
    for generation in found.generations:
        selected = found.decided(generation.number, DecisionKind.SELECT)
        assert selected is not None
        counts.append(len(selected.payload["predictors"]["pretrain_1"]))
    scored = [one.id for one in found.individuals if not one.is_baseline and found.scores(one.id)]
    assert counts == sorted(counts) and counts[0] == LEAST and counts[-1] == len(scored)


def test_before_enough_are_scored_the_rungs_own_loss_decides(state: StateFolder) -> None:
    found = searched(state, population__mu=LEAST - 1, experiment__generations=1).store.read()
    assert [one.metric for one in at_the_rung(found)] == [""]


def test_without_it_a_search_is_what_it_was(folder) -> None:
    plain = {"promotion": {"rule": "halving"}}
    before = searched(folder(), **plain)
    named = searched(folder(), promotion={"rule": "halving", "metric": "loss"})
    assert story(before.store) == story(named.store)
    assert all("metric" not in one.payload for one in before.store.read().cutoffs)


def test_who_asks_is_told_what_it_was_judged_by(by_best: Any) -> None:
    (kept, *_) = at_the_rung(by_best.store.read())[0].kept
    told = [one.text for one in compile_dossier(by_best.state.path, str(kept)).decisions]
    assert any("by the loss pretrain_1, whose rank correlation" in text for text in told)


def test_a_recorded_metric_is_read_as_it_was_written(by_best: Any) -> None:
    made = at_the_rung(by_best.store.read())[0]
    assert Promotion.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("promotion", "words"),
    [
        ({"rule": "curve", "metric": "best"}, '"curve" extrapolates the curve of the stage itself'),
        ({"rule": "asha", "metric": "untrained"}, "raise population.screened"),
        ({"rule": "asha", "metric": "bleu"}, "'loss', 'untrained' or 'best'"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_with_its_key(promotion, words) -> None:
    rungs = {"stages__finetune__rungs": RUNGS, "stages__finetune__evaluations": 4}
    with pytest.raises(NasdError) as caught:
        parse(small_dict(promotion=promotion, **rungs), "c.toml")
    assert str(caught.value).startswith("c.toml: promotion.metric: ")
    assert words in str(caught.value)


# -- which one -----------------------------------------------------------------------------------

NUMBERS = st.integers(-3, 3).map(float)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30)


@given(PAIRS)
def test_the_correlation_is_that_of_the_report_with_the_other_sign(pairs) -> None:
    told = spearman([loss for loss, _ in pairs], [quality for _, quality in pairs])
    found = rank_correlation(pairs)
    if len(pairs) < LEAST or told is None:
        assert found is None
    else:
        assert found == pytest.approx(-told.value, abs=1e-9)


@given(st.dictionaries(st.sampled_from("abc"), st.permutations(range(10)), min_size=1))
def test_the_best_tells_most_and_of_equals_the_last_is_taken(orders) -> None:
    pairs = {
        name: [(float(loss), -float(place)) for place, loss in enumerate(order)]
        for name, order in orders.items()
    }
    names = [*pairs]
    found = best(pairs, names)
    assert isinstance(found, Metric)
    told = {name: rank_correlation(pairs[name]) or 0.0 for name in names}
    assert found.correlation == max(told.values())
    assert found.name == [name for name in names if told[name] == found.correlation][-1]


def test_as_long_as_one_of_them_cannot_be_told_none_is_better_than_it() -> None:
    pairs = {"a": [(float(i), -float(i)) for i in range(LEAST)], "b": [(1.0, 2.0)]}
    assert best(pairs, ["a", "b"]) is None
    assert best(pairs, ["a"]) == Metric("a", 1.0, LEAST)
