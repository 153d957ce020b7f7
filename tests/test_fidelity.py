"""What every promotion rule promises, whichever it is, and the record of what came of it."""

import json
import math
import random
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract.sections import search as config
from nasd.record.folders import StateFolder
from nasd.search.fidelity import RULES, promote
from nasd.search.fidelity.curve import EXPONENTS, forecast
from nasd.search.fidelity.preference import preferred
from nasd.search.fidelity.promotion import Action, Budget, Curves, Promotion, Rule, Rung
from nasd.search.pareto import covers, ranks
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


def test_a_rule_is_registered_under_its_own_name_and_known_to_configs():
    assert all(rule.name == name for name, rule in RULES.items())
    assert (*RULES,) == config.RULES == get_args(config.Promotion.model_fields["rule"].annotation)
    assert RULES["curve"].points == config.CURVE_POINTS


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
    if found.threshold is None:  # it goes by more than losses: by places, as they are recorded
        assert rule.name != "share"
        assert [*found.losses] == [*found.kept, *found.cut]
    else:
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


# -- several objectives --------------------------------------------------------------------------

SIZES = st.tuples(st.floats(0.5, 20), st.floats(0, 1))
CROWD = st.dictionaries(
    st.integers(1, 40), st.tuples(st.floats(0, 10), SIZES), min_size=1, max_size=14
)


def known_of(crowd: dict[int, tuple[float, tuple[float, float]]]) -> tuple[Curves, Budget]:
    curves = {one: ((10, loss),) for one, (loss, _) in crowd.items()}
    return curves, Budget(0.5, {one: sizes for one, (_, sizes) in crowd.items()})


@given(CROWD)
def test_no_one_is_preferred_to_whom_it_is_dominated_by(crowd):
    curves, budget = known_of(crowd)
    losses = {one: curve[-1][1] for one, curve in curves.items()}
    order = preferred(losses, budget)
    assert sorted(order) == sorted(crowd)
    assert losses[order[0]] == min(losses.values())
    for place, one in enumerate(order):
        mine = budget.point(one, losses[one])
        assert not any(
            covers(mine, theirs) and mine != theirs
            for theirs in (budget.point(other, losses[other]) for other in order[:place])
        )


@given(CROWD)
def test_of_a_front_the_second_place_is_the_farthest_in_size(crowd):
    curves, budget = known_of(crowd)
    losses = {one: curve[-1][1] for one, curve in curves.items()}
    at = [budget.point(one, losses[one]) for one in sorted(crowd)]
    front = [one for one, rank in zip(sorted(crowd), ranks(at), strict=True) if rank == 0]
    order = preferred(losses, budget)
    assert {*order[: len(front)]} == {*front}
    alone = {one: (sizes[0],) for one, sizes in budget.beside.items()}
    first, *rest = preferred(losses, Budget(0.5, alone))
    at = [(-losses[one], *alone[one]) for one in sorted(crowd)]
    front = [one for one, rank in zip(sorted(crowd), ranks(at), strict=True) if rank == 0]
    if len(front) > 1:
        gaps = {one: abs(alone[one][0] - alone[first][0]) for one in front}
        assert gaps[rest[0]] == pytest.approx(max(gaps.values()))


@pytest.mark.parametrize("rule", [RULES["halving"], RULES["asha"], RULES["curve"]])
def test_small_ones_go_on_though_they_have_the_highest_losses(rule):
    curves = {one: ((5, 3.0), (10, 2.0), (15, 1.0 + one / 10)) for one in range(8)}
    budget = Budget(0.5, {one: (1.0 + one,) for one in range(8)})  # the higher, the smaller
    found = promote(rule, curves, [Rung("at", 8, share=0.5)], budget)
    assert found is not None
    assert len(found.kept) == 4
    assert {0, 7} <= {*found.kept}
    by_loss = promote(RULES["share"], curves, [Rung("at", 8)], budget)
    assert by_loss is not None
    assert 7 in by_loss.cut


# -- asynchronous halving ------------------------------------------------------------------------


def told(crowd: Mapping[int, Any], comes: Sequence[int], failed: set[int]) -> list[Promotion]:
    """All that is decided while candidates come to a rung in this order of time."""
    curves, budget = known_of(crowd)
    births, made, here = sorted(crowd), list[Promotion](), set[int]()
    for number, one in enumerate(comes, 1):
        here.add(one)
        arrived = [*takewhile(lambda known: known in here, births)]
        while True:
            promoted = tuple(kept for found in made for kept in found.kept)
            waits = {
                other: curves[other]
                for other in here
                if other not in failed and other not in {c for found in made for c in found.cut}
            }
            if not waits.keys() - {*promoted}:
                break
            left = len(births) - number
            rung = Rung("at", len(births), left, arrived=tuple(arrived), promoted=promoted)
            found = promote(RULES["asha"], waits, [rung], budget)
            if found is None:
                break
            made.append(found)
    return made


@given(CROWD, st.randoms(use_true_random=False), st.data())
def test_whom_asha_promotes_and_when_follows_from_no_order_of_ends(crowd, rng, data):
    failed = {one for one in crowd if data.draw(st.booleans())} if len(crowd) > 2 else set()
    births = sorted(crowd)
    comes = [*births]
    rng.shuffle(comes)
    usual, shuffled = told(crowd, births, failed), told(crowd, comes, failed)
    assert [one.to_json() for one in usual] == [one.to_json() for one in shuffled]
    kept = [one for found in usual for one in found.kept]
    assert len(kept) == len({*kept}) <= max(1, math.ceil(0.5 * len(births)))
    assert {*kept, *(one for found in usual for one in found.cut)} == {*births} - failed
    assert bool(kept) == bool({*births} - failed)
    for found in usual:
        assert Promotion.from_json(json.loads(json.dumps(found.to_json()))) == found
        assert all(1 <= found.place(one) <= found.reached for one in (*found.kept, *found.cut))


def test_somebody_pauses_and_is_promoted_late():
    losses = {1: 2.0, 2: 1.0, 3: 3.0, 4: 4.0}
    crowd = {one: (loss, (1.0, 1.0)) for one, loss in losses.items()}
    made = told(crowd, [1, 2, 3, 4], set())
    assert [(found.kept, found.reached) for found in made] == [((1,), 1), ((2,), 3), ((), 4)]
    assert made[-1].cut == (3, 4)
    assert "among the 1 of the first 1" in made[0].reasons[1]
    assert "among the 2 of the first 3" in made[1].reasons[2]


# -- extrapolated curves -------------------------------------------------------------------------


@given(st.floats(0.1, 3), st.floats(0.05, 4), st.sampled_from(EXPONENTS), st.integers(4, 10))
def test_a_power_law_is_foretold_to_its_end(offset, height, exponent, points):
    curve = [(10 * n, offset + height * n**-exponent) for n in range(1, points + 1)]
    found = forecast(curve, 20.0 * points, 1e-3)
    at_end = offset + height * (2.0 * points) ** -exponent
    assert abs(found.mean - at_end) <= 3 * found.deviation + 1e-3
    assert found.deviation < 0.25 * height + 2e-3


def test_as_many_ends_lie_within_what_is_foretold_as_it_says():
    drawn, inside = random.Random(5), 0
    for _ in range(400):
        offset, height, exponent = (
            drawn.uniform(0.5, 1.5),
            drawn.uniform(0.2, 2),
            drawn.choice(EXPONENTS),
        )
        curve = [
            (10 * n, offset + height * n**-exponent + drawn.gauss(0, 0.02)) for n in range(1, 7)
        ]
        found = forecast(curve, 120.0, 0.02)
        end = offset + height * 12.0**-exponent + drawn.gauss(0, 0.02)
        inside += abs(end - found.mean) <= 1.96 * found.deviation
    assert 0.9 <= inside / 400 <= 1.0


def test_a_curve_that_falls_is_kept_before_one_that_has_come_to_rest():
    curves = {
        1: tuple((n, 1.0 + 0.001 * (n % 2)) for n in range(1, 9)),
        2: tuple((n, 0.3 + 2.0 * n**-0.5) for n in range(1, 9)),  # at 8: 1.007
    }
    found = promote(RULES["curve"], curves, [Rung("at", 2, share=0.25)], Budget(0.5))
    assert found is not None
    assert (found.kept, found.cut) == ((2,), (1,))
    by_loss = promote(RULES["share"], curves, [Rung("at", 2)], Budget(0.5))
    assert by_loss is not None
    assert by_loss.kept == (1,)


def test_who_is_surely_worse_is_cut_where_there_is_room_and_told_by_whom():
    curves = {one: tuple((n, one + 1.0 / n) for n in range(1, 7)) for one in (1, 2, 3)}
    found = promote(RULES["curve"], curves, [Rung("at", 3, share=0.5)], Budget(1.0))
    assert found is not None
    assert (found.kept, found.cut) == ((1,), (2, 3))
    assert "candidate 1 is no larger, and better with a probability of 1.000" in found.reasons[2]
    sized = Budget(1.0, {1: (1.0,), 2: (2.0,), 3: (3.0,)})
    found = promote(RULES["curve"], curves, [Rung("at", 3, share=0.5)], sized)
    assert found is not None
    assert found.kept == (1, 3, 2)


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
