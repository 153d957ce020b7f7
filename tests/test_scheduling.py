"""Which attempts start, on which slots, and which one is stopped to get more of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract.config import SCREEN, Config
from nasd.contract.genotype import Block, FeedForward, Genotype
from nasd.contract.protocol import Heartbeat
from nasd.policy import ladder, scheduling
from nasd.policy.endings import BACKOFF_SECONDS
from nasd.record.lifecycle import AttemptState, CandidateKind, QuarantineKind, State
from nasd.record.state import Quarantine, Snapshot
from nasd.record.store import BASELINE
from tests.conftest import small_config
from tests.snapshots import (
    CONFIG,
    SLOTS,
    attempt_of,
    baseline_at,
    begun,
    generation_1,
    lost,
    put,
    shaped,
    with_attempts,
)

__all__ = ["begun", "generation_1"]  # fixtures

BIGGER = Genotype((Block(4, (FeedForward("gelu", (96,)),)),) * 5)


def started(snapshot: Snapshot, config: Config = CONFIG, free: Any = SLOTS, now: float = 5000.0):
    leases = {slot: 98 for slot in SLOTS if slot not in free}
    found = replace(snapshot, leases=leases)
    starts = scheduling.starts(found, config, SLOTS, now)
    return [(one.candidate, one.stage, one.slots) for one in starts]


def quarantined(snapshot: Snapshot, *slots: str, kind: str = "lost") -> Snapshot:
    given = {slot: Quarantine(slot, QuarantineKind(kind), "why", 0.0) for slot in slots}
    return replace(snapshot, quarantine=given)


def test_the_furthest_up_the_ladder_starts_first_then_the_older(generation_1):
    found = put(
        generation_1,
        {
            4: ("pretrain_0", State.PENDING),
            5: ("finetune", State.PENDING),
            6: ("evaluate", State.PENDING),
            7: ("pretrain_0", State.PENDING),
        },
    )
    assert started(found) == [
        (6, "evaluate", ("cpu:0",)),
        (5, "finetune", ("cpu:1", "cpu:2")),
    ]
    assert started(found, free=SLOTS[:2]) == [(6, "evaluate", ("cpu:0",))]


def test_of_one_stage_the_longest_starts_first_and_of_equals_the_older(generation_1):
    assert [one[0] for one in started(generation_1)] == [4, 5]
    assert [one[0] for one in started(generation_1, free=SLOTS[:3])] == [4]
    assert started(generation_1, free=SLOTS[:1]) == []
    assert started(generation_1, free=()) == []
    equal = put(generation_1, dict.fromkeys(range(4, 8), ("pretrain_1", State.PENDING)))
    assert [one[0] for one in started(shaped(equal, BIGGER, 6))] == [6, 4]


def test_before_the_data_is_counted_there_is_no_work_to_compare(begun):
    assert ladder.work_ahead(begun, CONFIG, begun.baseline) == 0.0
    assert started(begun) == [(BASELINE, "prepare", ("cpu:0",))]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["pretrain_0", "pretrain_1", "finetune", "evaluate"]),
            st.sampled_from(list(State)),
        ),
        min_size=4,
        max_size=4,
    ),
    st.sets(st.sampled_from(SLOTS)),
)
def test_only_who_is_pending_starts_with_as_many_slots_as_its_stage_says(
    generation_1, places, free
):
    found = put(generation_1, dict(enumerate(places, 4)))
    used: list[str] = []
    for candidate, stage, slots in started(found, free=sorted(free)):
        assert found.candidates[candidate].state is State.PENDING
        assert stage == found.candidates[candidate].stage
        assert len(slots) == ladder.slots_needed(CONFIG, stage, len(SLOTS))
        used += slots
    assert len(used) == len(set(used))
    assert set(used) <= free


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_who_lost_attempts_waits_longer_each_time(generation_1, times):
    found = with_attempts(generation_1, *lost(4, times))
    ready = 2010.0 + BACKOFF_SECONDS[times - 1]
    assert 4 not in [one[0] for one in started(found, now=ready - 0.1)]
    assert 4 in [one[0] for one in started(found, now=ready)]


def test_the_wait_has_a_longest_value(generation_1):
    found = with_attempts(generation_1, *lost(4, 5))
    assert 4 in [one[0] for one in started(found, now=2010.0 + BACKOFF_SECONDS[-1])]


@pytest.mark.parametrize(
    "after_it",
    [
        attempt_of(4, "pretrain_0", AttemptState.PREEMPTED),  # ran well, and was asked to stop
        attempt_of(4, "finetune", AttemptState.SUCCEEDED),
    ],
)
def test_who_was_asked_to_stop_or_lost_another_stage_does_not_wait(generation_1, after_it):
    stage = "pretrain_0" if after_it.state is AttemptState.PREEMPTED else "finetune"
    found = with_attempts(generation_1, *lost(4, 3, stage=stage), after_it)
    assert 4 in [one[0] for one in started(found, now=2010.0)]


def test_a_clock_that_was_set_back_makes_nobody_wait(generation_1):
    found = with_attempts(generation_1, *lost(4, 5))
    assert 4 in [one[0] for one in started(found, now=1500.0)]


def test_nothing_starts_while_the_search_is_on_hold(generation_1):
    held = replace(generation_1.experiment, hold="the disk is full")
    assert started(replace(generation_1, experiment=held)) == []


@pytest.mark.parametrize("kind", ["lost", "foreign", "suspect"])
def test_a_slot_in_quarantine_is_left_alone_and_the_search_goes_on_on_the_others(
    generation_1, kind
):
    found = quarantined(generation_1, SLOTS[0], SLOTS[2], kind=kind)
    assert started(found) == [(4, "pretrain_0", (SLOTS[1], SLOTS[3]))]


def test_a_stage_makes_do_with_fewer_slots_where_no_more_can_be_used(generation_1):
    found = quarantined(generation_1, *SLOTS[1:])
    assert started(found) == [(4, "pretrain_0", (SLOTS[0],))]


def test_a_stage_waits_for_its_slots_where_they_are_only_taken(generation_1):
    assert started(generation_1, free=SLOTS[:1]) == []


def test_the_second_chance_after_an_out_of_memory_comes_at_once(generation_1):
    found = with_attempts(generation_1, *lost(4, 1, "out_of_memory"))
    assert 4 in [one[0] for one in started(found, now=2010.0)]


# -- widening ------------------------------------------------------------------------------------

WIDE = small_config(slots__widen=True)
EIGHT = tuple(f"cpu:{n}" for n in range(8))
CUT = ("pretrain_0", State.CUT)
AT_WORK = Heartbeat(doing="training", step=100, steps=1000, at=0.0, age=700.0)  # 105 minutes to go


def standing(
    snapshot: Snapshot, places: Mapping[int, tuple[str, State]], held: Mapping[int, int] = {}
) -> Snapshot:
    """These of candidates 4 to 7 at these places, the others cut; who runs has an attempt of the
    id 100 + candidate on so many slots, cpu:0 and so on, or on as many as its stage asks for."""
    found = put(snapshot, dict.fromkeys(range(4, 8), CUT) | dict(places))
    attempts, leases, free = [], {}, list(EIGHT)
    for number, (stage, state) in places.items():
        if state is State.RUNNING:
            count = held.get(number, ladder.slots_needed(WIDE, stage, len(EIGHT)))
            its, free = tuple(free[:count]), free[count:]
            attempts.append(
                attempt_of(number, stage, AttemptState.RUNNING, id=100 + number, slots=its)
            )
            leases |= dict.fromkeys(its, 100 + number)
    return replace(with_attempts(found, *attempts), leases=leases)


def widths(found: Snapshot, slots: tuple[str, ...] = SLOTS, config: Config = WIDE) -> list[Any]:
    starts = scheduling.starts(found, config, slots, 5000.0)
    return [(one.candidate, len(one.slots)) for one in starts]


def widened(
    found: Snapshot,
    slots: tuple[str, ...] = SLOTS,
    config: Config = WIDE,
    beats: Mapping[int, Heartbeat] | None = None,
) -> int | None:
    """The candidate whose attempt is to be stopped."""
    if beats is None:
        beats = {attempt.id: AT_WORK for attempt in found.live_attempts}
    attempt = scheduling.widening(found, config, slots, 5000.0, beats)
    return None if attempt is None else attempt.candidate


TRAINS, RUNS = ("pretrain_1", State.PENDING), ("pretrain_1", State.RUNNING)


def test_who_starts_with_nobody_left_to_wait_gets_what_would_idle(generation_1):
    alone = standing(generation_1, {5: TRAINS})
    assert widths(alone, config=CONFIG) == [(5, 2)]
    assert widths(alone) == [(5, 4)]
    assert widths(alone, SLOTS[:3]) == [(5, 3)]
    assert widths(standing(generation_1, {4: TRAINS, 5: TRAINS}), EIGHT) == [(4, 4), (5, 4)]
    beside = standing(generation_1, {4: RUNS, 5: TRAINS})
    assert widths(beside) == [(5, 2)]
    assert widths(beside, EIGHT) == [(5, 4)]


def test_a_screening_that_runs_beside_it_will_ask_for_no_more(generation_1):
    beside = standing(generation_1, {4: RUNS, 5: TRAINS})
    screening = replace(beside.candidates[4], kind=CandidateKind.SCREENING, stage=SCREEN)
    found = replace(beside, candidates={**beside.candidates, 4: screening})
    assert widths(found, EIGHT) == [(5, 4)]


def test_nobody_gets_more_slots_while_another_one_waits(generation_1):
    three = standing(generation_1, {4: TRAINS, 5: TRAINS, 6: TRAINS})
    assert widths(three) == [(4, 2), (5, 2)]
    assert widths(three, SLOTS[:3]) == [(4, 2)]
    backs_off = with_attempts(
        standing(generation_1, {4: TRAINS, 5: TRAINS}), *lost(4, 1, stage="pretrain_1")
    )
    starts = scheduling.starts(backs_off, WIDE, SLOTS, 2011.0)
    assert [(one.candidate, len(one.slots)) for one in starts] == [(5, 2)]


def test_nobody_gets_more_ranks_than_a_batch_has_examples(generation_1):
    config = small_config(slots__widen=True, stages__pretrain_1__batch=3)
    assert widths(standing(generation_1, {5: TRAINS}), config=config) == [(5, 3)]


def test_an_evaluation_gets_no_more_slots_than_it_asks_for(generation_1):
    assert widths(standing(generation_1, {5: ("evaluate", State.PENDING)})) == [(5, 1)]


def test_who_was_lost_gets_no_more_slots_than_it_asks_for(generation_1):
    found = standing(generation_1, {5: TRAINS})
    again = with_attempts(found, *lost(5, 1, stage="pretrain_1"))
    assert widths(again) == [(5, 2)]
    runs = with_attempts(standing(generation_1, {5: RUNS}), *lost(5, 1, stage="pretrain_1"))
    assert widened(runs) is None


def test_the_baseline_gets_more_slots_only_while_it_is_alone_in_the_search(begun, generation_1):
    head = baseline_at(begun, "pretrain_head", State.PENDING, has_head=False)
    assert widths(head) == [(BASELINE, 4)]
    among = put(standing(generation_1, {}), {BASELINE: ("finetune", State.PENDING)})
    assert widths(among) == [(BASELINE, 2)]


def test_slots_that_somebody_under_way_will_ask_for_are_not_given_away(generation_1):
    config = small_config(slots__widen=True, stages__pretrain_1__slots=1, stages__finetune__slots=3)
    places = {4: RUNS, 5: TRAINS}
    found = standing(generation_1, places, {4: 1})
    assert widths(found, config=config) == [(5, 1)]  # 4 will want three of the four
    assert widths(found, EIGHT, config=config) == [(5, 4)]


def test_an_attempt_is_stopped_for_slots_that_idle(generation_1):
    alone = standing(generation_1, {5: RUNS})
    assert widened(alone) == 5
    assert widened(standing(generation_1, {5: RUNS, 6: RUNS}), EIGHT) is not None


SOON = AT_WORK.model_copy(update={"step": 930})  # 53 s
YOUNG = AT_WORK.model_copy(update={"age": 599.0})
RESUMED = AT_WORK.model_copy(update={"step": 50})  # where an earlier attempt ended


@pytest.mark.parametrize(
    ("places", "more"),
    [
        ({5: RUNS}, {"config": CONFIG}),
        ({5: RUNS}, {"beats": {}}),
        ({5: RUNS}, {"beats": {105: SOON}}),
        ({5: RUNS}, {"beats": {105: YOUNG}}),
        ({5: RUNS}, {"slots": SLOTS[:2]}),
        ({5: RUNS, 6: RUNS}, {}),
        ({5: RUNS, 6: ("evaluate", State.RUNNING)}, {}),  # which is soon over
        ({5: RUNS, 6: TRAINS}, {}),
        ({5: ("evaluate", State.RUNNING)}, {}),
        ({5: RUNS}, {"config": small_config(slots__widen=True, stages__pretrain_1__batch=2)}),
        ({5: RUNS}, {"config": small_config(slots__widen=True, experiment__budget_gpu_hours=1e-3)}),
    ],
)
def test_an_attempt_is_left_alone_where_more_slots_are_not_to_be_had_or_not_worth_it(
    generation_1, places, more
):
    assert widened(standing(generation_1, places), **more) is None


def test_nobody_is_stopped_for_more_slots_on_hold_or_for_slots_in_quarantine(generation_1):
    found = standing(generation_1, {5: RUNS})
    held = replace(found.experiment, hold="the disk is full")
    assert widened(replace(found, experiment=held)) is None
    assert widened(quarantined(found, *SLOTS[2:])) is None


def test_what_is_to_go_is_judged_by_this_attempts_own_pace(generation_1):
    found = standing(generation_1, {5: RUNS})
    before = attempt_of(5, "pretrain_1", AttemptState.PREEMPTED, reached=50, id=90)
    assert widened(found, beats={105: RESUMED}) == 5
    assert widened(with_attempts(found, before), beats={105: RESUMED}) is None  # no step yet
    slow = AT_WORK.model_copy(update={"step": 960})
    resumed = replace(before, reached=930)
    assert widened(found, beats={105: slow}) is None  # 40 steps of 0.7 s
    assert widened(with_attempts(found, resumed), beats={105: slow}) == 5  # of 23 s


def test_of_several_the_one_with_longest_to_go_is_stopped(generation_1):
    found = standing(generation_1, {5: RUNS, 6: RUNS})
    beats = {105: AT_WORK, 106: AT_WORK.model_copy(update={"steps": 2000})}
    assert widened(found, EIGHT, beats=beats) == 6
    assert widened(found, EIGHT, beats=beats | {105: beats[106]}) == 5  # of equals the older


def test_an_attempt_that_runs_on_fewer_slots_than_its_stage_asks_for_gets_them_back(generation_1):
    found = standing(generation_1, {5: RUNS, 6: RUNS}, {5: 1, 6: 2})
    assert widened(found) == 5
    assert widened(found, SLOTS[:3]) is None
    assert widened(standing(generation_1, {5: RUNS, 6: RUNS}, {5: 4, 6: 2}), EIGHT[:6]) is None
    # and is not stopped for so few that it would have to wait with them
    config = small_config(slots__widen=True, stages__pretrain_1__slots=4)
    beside = {5: RUNS, 6: ("evaluate", State.RUNNING)}
    assert widened(standing(generation_1, beside, {5: 1, 6: 1}), config=config) is None


STANDING = st.lists(
    st.tuples(
        st.sampled_from(["pretrain_0", "pretrain_1", "finetune", "evaluate"]),
        st.sampled_from([State.PENDING, State.RUNNING, State.CUT, State.WAITING]),
    ),
    min_size=4,
    max_size=4,
).filter(lambda places: sum(state is State.RUNNING for _, state in places) <= 3)
COUNTS = st.dictionaries(st.integers(4, 7), st.integers(1, 2))


@given(STANDING, COUNTS, st.integers(1, 8))
def test_more_slots_than_asked_for_come_only_from_those_that_would_idle(
    generation_1, places, held, count
):
    slots = EIGHT[:count]
    found = standing(generation_1, dict(enumerate(places, 4)), held)
    usual = scheduling.starts(found, CONFIG, slots, 5000.0)
    wide = scheduling.starts(found, WIDE, slots, 5000.0)
    assert [(one.candidate, one.stage) for one in usual] == [
        (one.candidate, one.stage) for one in wide
    ]
    used = [slot for one in wide for slot in one.slots]
    assert len(used) == len(set(used))
    assert set(used) <= set(slots) - set(found.leases)
    waits = [c for c in found.candidates.values() if c.state is State.PENDING]
    for before, after in zip(usual, wide, strict=True):
        assert len(after.slots) == len(before.slots) or len(waits) == len(usual)
        assert len(after.slots) >= len(before.slots)


@given(STANDING, COUNTS, st.integers(1, 8))
def test_who_is_stopped_for_more_slots_gets_them_at_once_and_is_not_stopped_again(
    generation_1, places, held, count
):
    slots = EIGHT[:count]
    found = standing(generation_1, dict(enumerate(places, 4)), held)
    beats = {one.id: AT_WORK for one in found.live_attempts}
    attempt = scheduling.widening(found, WIDE, slots, 5000.0, beats)
    if attempt is None:
        return
    assert not any(c.state is State.PENDING for c in found.candidates.values())
    ended = replace(attempt, state=AttemptState.PREEMPTED, ended_at=5000.0, verdict="stopped")
    others = tuple(ended if one.id == attempt.id else one for one in found.attempts)
    leases = {slot: one for slot, one in found.leases.items() if one != attempt.id}
    stopped = put(found, {attempt.candidate: (attempt.stage, State.PENDING)})
    stopped = replace(stopped, attempts=others, leases=leases)
    (start,) = scheduling.starts(stopped, WIDE, slots, 5000.0)  # without any back-off
    assert start.candidate == attempt.candidate
    assert len(start.slots) >= scheduling.WIDER * len(attempt.slots)
    again = attempt_of(
        start.candidate, start.stage, AttemptState.RUNNING, id=200, slots=start.slots
    )
    runs = put(stopped, {start.candidate: (start.stage, State.RUNNING)})
    runs = replace(with_attempts(runs, again), leases=leases | dict.fromkeys(start.slots, again.id))
    left = [slot for slot in slots if slot not in runs.leases]
    for other in runs.live_attempts:  # what they will ask for is there
        if other.id != again.id:
            ahead = ladder.way(runs, WIDE, runs.candidates[other.candidate])
            most = max(ladder.slots_needed(WIDE, stage.name, len(slots)) for stage in ahead)
            assert most - len(other.slots) <= len(left)
    beats |= {again.id: AT_WORK}
    next_one = scheduling.widening(runs, WIDE, slots, 5000.0, beats)
    assert next_one is None or next_one.id != again.id


# -- the budget ----------------------------------------------------------------------------------


def test_no_attempt_starts_once_the_budget_is_spent(generation_1):
    spent = generation_1.gpu_hours(5000.0)
    assert spent > 0
    assert started(generation_1, small_config(experiment__budget_gpu_hours=spent)) == []
    more = small_config(experiment__budget_gpu_hours=spent * 1.01)
    assert len(started(generation_1, more)) == 2


def test_running_attempts_count_for_the_budget_as_they_run(generation_1):
    spent = generation_1.gpu_hours(5000.0)
    live = attempt_of(7, "pretrain_0", AttemptState.RUNNING, slots=SLOTS[:2], started_at=5000.0)
    found = with_attempts(put(generation_1, {7: ("pretrain_0", State.RUNNING)}), live)
    config = small_config(experiment__budget_gpu_hours=spent + 2)
    assert started(found, config, now=5000.0 + 3599) != []
    assert started(found, config, now=5000.0 + 3601) == []
