"""What every promotion rule promises, whichever it is, and the record of what came of it."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.record.folders import StateFolder
from nasd.search.fidelity import RULES, promote
from nasd.search.fidelity.promotion import Action, Budget, Curves, Promotion, Rule, Rung
from nasd.views import board, dossier
from nasd.views.report import write
from tests.conftest import all_succeed, drive, make_tick, small_config

LOSSES = st.sampled_from([0.0, 1.0, 1.5, 2.0, 1e30])  # few, so that there are ties
CURVE = st.lists(LOSSES, min_size=1, max_size=3).map(
    lambda losses: tuple((10 * n, loss) for n, loss in enumerate(losses, 1))
)
CURVES = st.dictionaries(st.integers(1, 40), CURVE, min_size=1, max_size=12)
BUDGETS = st.floats(0.001, 1.0).map(Budget)

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def rungs(curves: Curves, failed: int = 0, under_way: int = 0) -> list[Rung]:
    """Two of a ladder; the second is decided on."""
    reached = len(curves) + failed
    return [Rung("low", reached + 3), Rung("high", reached, under_way)]


def promoted(rule: Rule, curves: Curves, failed: int, budget: Budget) -> Promotion:
    found = promote(rule, curves, rungs(curves, failed), budget)
    assert found is not None
    return found


def test_a_rule_is_registered_under_its_own_name():
    assert all(rule.name == name for name, rule in RULES.items())


@every_rule
@given(CURVES, st.integers(0, 12), BUDGETS)
def test_somebody_goes_on_and_never_more_than_there_are_places(rule, curves, failed, budget):
    found = promoted(rule, curves, failed, budget)
    assert found.places == budget.places(len(curves) + failed)
    assert 1 <= len(found.kept) <= found.places
    assert sorted((*found.kept, *found.cut)) == sorted(curves)


@every_rule
@given(CURVES, st.integers(0, 12), BUDGETS)
def test_of_two_with_one_curve_the_lower_id_goes_first(rule, curves, failed, budget):
    found = promoted(rule, curves, failed, budget)
    for one in found.kept:
        assert all(one < other for other in found.cut if curves[other] == curves[one])


@every_rule
@given(CURVES, st.integers(0, 12), BUDGETS, st.randoms(use_true_random=False))
def test_the_order_in_which_they_came_changes_nothing(rule, curves, failed, budget, rng):
    order = list(curves)
    rng.shuffle(order)
    shuffled = {one: curves[one] for one in order}
    before, after = (promoted(rule, some, failed, budget) for some in (curves, shuffled))
    assert json.dumps(before.to_json()) == json.dumps(after.to_json())


@every_rule
@given(CURVES, st.integers(0, 12), BUDGETS)
def test_the_threshold_parts_the_kept_from_the_cut_and_is_what_each_was_told(
    rule, curves, failed, budget
):
    found = promoted(rule, curves, failed, budget)
    assert all(found.losses[one] <= found.threshold for one in found.kept)
    assert all(found.losses[one] >= found.threshold for one in found.cut)
    choices = rule.decide(curves, rungs(curves, failed), budget)
    for one, choice in choices.items():
        assert choice.action is (Action.KEEP if one in found.kept else Action.CUT)
        assert (choice.threshold, choice.loss) == (found.threshold, found.losses[one])
        assert choice.reason == found.reasons[one] != ""


@every_rule
@given(CURVES, st.integers(0, 12), BUDGETS)
def test_what_is_recorded_is_read_as_it_was(rule, curves, failed, budget):
    found = promoted(rule, curves, failed, budget)
    assert Promotion.from_json(json.loads(json.dumps(found.to_json()))) == found


@every_rule
@given(CURVES, BUDGETS, st.integers(1, 12))
def test_nobody_is_moved_while_the_rule_has_somebody_wait(rule, curves, budget, under_way):
    choices = rule.decide(curves, rungs(curves, under_way=under_way), budget)
    found = promote(rule, curves, rungs(curves, under_way=under_way), budget)
    waits = [one for one in choices.values() if one.action is Action.WAIT]
    assert choices.keys() == curves.keys()
    assert (found is None) == bool(waits)
    assert all(one.reason and one.threshold is None and one.loss is None for one in waits)


def test_a_cutoff_of_an_earlier_version_is_read_with_the_loss_of_the_last_one_kept():
    earlier = {
        "rule": "the lowest 2 of 4 by the last evaluation loss",
        "keep": 0.5,
        "places": 2,
        "reached": 4,
        "losses": {"5": 1.0, "6": 2.0, "4": 3.0},
        "curves": {"5": [[1, 1.0]], "6": [[1, 2.0]], "4": [[1, 3.0]]},
        "kept": [5, 6],
        "cut": [4],
    }
    found = Promotion.from_json(earlier)
    assert (found.name, found.threshold, found.reasons) == ("share", 2.0, {})
    assert (found.kept, found.cut) == ((5, 6), (4,))
    assert [found.place(one) for one in (5, 6, 4)] == [1, 2, 3]
    again = found.to_json()
    assert {key: again[key] for key in earlier} == earlier


def test_every_view_tells_the_threshold_that_is_recorded(tmp_path: Path):
    """One that no loss has, as of a rule that goes by more than the last one."""
    tick = make_tick(StateFolder(tmp_path / "state"), small_config(), all_succeed)
    drive(tick)
    tick.store.close()
    with closing(sqlite3.connect(tick.state.database)) as database, database:
        database.execute(
            "UPDATE decision SET payload = json_set(payload, '$.threshold', 77.25)"
            " WHERE kind = 'cutoff'"
        )
    facts = write.read(tick.state.path, tick.clock())
    assert {row.threshold for row in facts.cutoffs} == {77.25}
    kept = next(row.candidate for row in facts.cutoffs if row.kept and row.generation == 1)
    told = dossier.compile_dossier(tick.state.path, str(kept), tick.clock()).decisions
    (row,) = [one for one in told if one.kind == "cutoff"]
    assert row.facts["threshold"] == 77.25
    assert "up to 77.2500" in row.text
    (events,) = [
        list(events)
        for name, events in board.generation_events(facts.snapshot, 1)
        if name == "gen01/cutoff"
    ]
    values = [
        value.simple_value
        for event in events
        for value in event.summary.value
        if value.HasField("simple_value")
    ]
    assert set(values) == {77.25}
