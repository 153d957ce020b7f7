"""What the end of an attempt means, and which GPUs come under suspicion."""

from typing import Any

import pytest

from nasd.contract.protocol import Outcome
from nasd.policy import endings
from nasd.record.lifecycle import AttemptState, AttemptVerdict, Event, State
from nasd.record.state import Attempt, Snapshot
from nasd.record.store import BASELINE
from tests.conftest import prepared
from tests.snapshots import (
    CONFIG,
    SLOTS,
    attempt_of,
    begun,
    generation_1,
    lost,
    put,
    with_attempts,
)

__all__ = ["begun", "generation_1"]  # fixtures

# -- ends ----------------------------------------------------------------------------------------

ENDS = [
    # verdict, (attempt, event, words of the message)
    (None, (AttemptState.LOST, Event.INTERRUPT, "gone without an outcome")),
    ("succeeded", (AttemptState.SUCCEEDED, Event.HOLD, "")),
    ("stopped", (AttemptState.PREEMPTED, Event.INTERRUPT, "why")),
    ("diverged", (AttemptState.FAILED, Event.FAIL, "diverged: why")),
    ("out_of_memory", (AttemptState.FAILED, Event.INTERRUPT, "half the micro-batch: why")),
    ("invalid", (AttemptState.FAILED, Event.FAIL, "invalid: why")),
    ("machine", (AttemptState.FAILED, Event.INTERRUPT, "why")),
    ("error", (AttemptState.FAILED, Event.INTERRUPT, "why")),  # once more
]


def ends(snapshot: Snapshot, candidate: int, outcome: Outcome | None, *before: Attempt) -> Any:
    """The end of a running attempt, as the tick asks for it: while the attempt is still live."""
    stage = snapshot.candidates[candidate].stage
    live = attempt_of(candidate, stage, AttemptState.RUNNING, id=200, number=9)
    running = put(snapshot, {candidate: (stage, State.RUNNING)})
    return endings.ending(with_attempts(running, *before, live), CONFIG, live, outcome)


@pytest.mark.parametrize(("verdict", "expected"), ENDS, ids=[str(verdict) for verdict, _ in ENDS])
def test_a_verdict_means_one_end_of_the_attempt_and_one_event(generation_1, verdict, expected):
    outcome = None if verdict is None else Outcome(verdict=verdict, message="why")
    end = ends(generation_1, 4, outcome)
    state, event, words = expected
    assert (end.state, end.event, end.next_stage) == (state, event, None)
    assert words in end.message


@pytest.mark.parametrize("verdict", ["diverged", "invalid"])
def test_a_fault_of_the_candidate_is_its_end_whatever_happened_before(generation_1, verdict):
    end = ends(generation_1, 4, Outcome(verdict=verdict), *lost(4, 3))
    assert (end.state, end.event) == (AttemptState.FAILED, Event.FAIL)


def test_who_runs_out_of_memory_is_tried_with_half_down_to_one_example(generation_1):
    once = lost(4, 1, "out_of_memory")
    four = generation_1.candidates[4]
    assert endings.halvings(generation_1, CONFIG, four, slots=2) == 0
    assert endings.halvings(with_attempts(generation_1, *once), CONFIG, four, slots=2) == 1
    assert endings.halvings(with_attempts(generation_1, *once), CONFIG, four, slots=1) == 2
    full = Outcome(verdict="out_of_memory", message="16 GB")
    for times in range(4):  # of 32 examples on two slots, on one
        end = ends(generation_1, 4, full, *lost(4, times, "out_of_memory"))
        assert (end.state, end.event) == (AttemptState.FAILED, Event.INTERRUPT)
    end = ends(generation_1, 4, full, *lost(4, 4, "out_of_memory"))
    assert (end.state, end.event) == (AttemptState.FAILED, Event.FAIL)
    assert end.message == "out_of_memory: 16 GB"


def test_an_error_that_comes_back_is_the_candidates_end(generation_1):
    error = Outcome(verdict="error", message="KeyError: 'x'")
    first = ends(generation_1, 4, error)
    assert (first.state, first.event) == (AttemptState.FAILED, Event.INTERRUPT)
    second = ends(generation_1, 4, error, *lost(4, 1, "error"))
    assert (second.state, second.event) == (AttemptState.FAILED, Event.FAIL)
    assert second.message == "error: KeyError: 'x'"


def test_an_error_after_lost_attempts_still_has_its_second_chance(generation_1):
    end = ends(generation_1, 4, Outcome(verdict="error"), *lost(4, 3))
    assert end.event is Event.INTERRUPT


def test_lost_attempts_are_never_charged_to_the_candidate(generation_1):
    assert ends(generation_1, 4, None, *lost(4, 40)).event is Event.INTERRUPT


def test_a_file_of_the_machines_is_never_charged_to_the_candidate(generation_1):
    end = ends(generation_1, 4, Outcome(verdict="machine"), *lost(4, 40, "machine"))
    assert end.event is Event.INTERRUPT


def test_data_of_the_users_that_are_at_fault_leave_the_baseline_to_be_tried_once_they_are_mended(
    begun,
):
    running = put(begun, {BASELINE: ("prepare", State.RUNNING)})
    attempt = attempt_of(BASELINE, "prepare", AttemptState.RUNNING)
    outcome = Outcome(verdict="invalid", message="squad.json: no questions")
    end = endings.ending(with_attempts(running, attempt), CONFIG, attempt, outcome)
    assert (end.state, end.event) == (AttemptState.FAILED, Event.INTERRUPT)


# -- the same error on several candidates --------------------------------------------------------

SHAPES = "RuntimeError: mat1 and mat2 shapes cannot be multiplied ({}x8)"


def errors_of(*candidates: int, said: str = SHAPES, first: int = 100) -> list[Attempt]:
    return [
        attempt_of(
            candidate,
            "pretrain_0",
            AttemptState.FAILED,
            verdict="error",
            message=said.format(number),
            id=first + number,
            ended_at=2010.0 + first + number,
        )
        for number, candidate in enumerate(candidates)
    ]


def after_all(candidate: int, state: AttemptState, verdict: str) -> Attempt:
    return attempt_of(
        candidate, "pretrain_0", state, verdict=verdict, id=150, ended_at=2010.0 + 150
    )


def candidates_alike(snapshot: Snapshot) -> list[int]:
    return [one.candidate for one in endings.alike(snapshot, "pretrain_0")]


def test_the_same_error_but_for_its_numbers_makes_a_row_of_candidates(generation_1):
    found = with_attempts(generation_1, *errors_of(4, 4, 5, 6))
    assert candidates_alike(found) == [4, 5, 6]
    assert endings.alike(found, "finetune") == []


@pytest.mark.parametrize(
    ("state", "verdict", "row"),
    [
        (AttemptState.SUCCEEDED, "succeeded", [6]),
        (AttemptState.FAILED, "diverged", [6]),
        (AttemptState.FAILED, "machine", [4, 5, 6]),
        (AttemptState.LOST, "", [4, 5, 6]),
        (AttemptState.PREEMPTED, "stopped", [4, 5, 6]),
    ],
)
def test_who_gets_through_the_stage_or_diverges_in_it_breaks_the_row_and_nobody_else_does(
    generation_1, state, verdict, row
):
    last = errors_of(6, first=160)
    between = after_all(7, state, verdict)
    found = with_attempts(generation_1, *errors_of(4, 5), between, *last)
    assert candidates_alike(found) == row
    other = errors_of(7, said="KeyError: 'x'", first=150)
    assert candidates_alike(with_attempts(generation_1, *errors_of(4, 5), *other, *last)) == [6]


def test_the_last_of_a_row_is_not_charged_with_an_error_that_others_had_before(generation_1):
    error = Outcome(verdict="error", message=SHAPES.format(12))
    own = errors_of(6, first=120)
    charged = ends(generation_1, 6, error, *errors_of(4, 4), *own)
    assert charged.event is Event.FAIL  # two: it may still be theirs
    spared = ends(generation_1, 6, error, *errors_of(4, 4, 5, 5), *own)
    assert (spared.state, spared.event) == (AttemptState.FAILED, Event.INTERRUPT)
    own_error = Outcome(verdict="error", message="KeyError: 'x'")
    assert ends(generation_1, 6, own_error, *errors_of(4, 4, 5, 5), *own).event is Event.FAIL


@pytest.mark.parametrize(
    ("has_head", "event", "stage"),
    [(True, Event.ADVANCE, "finetune"), (False, Event.ADVANCE, "pretrain_head")],
)
def test_after_prepare_the_baseline_trains_a_head_only_if_the_seed_has_none(
    begun, has_head, event, stage
):
    outcome = Outcome(verdict="succeeded", prepared=prepared(has_head))
    running = put(begun, {BASELINE: ("prepare", State.RUNNING)})
    attempt = attempt_of(BASELINE, "prepare", AttemptState.RUNNING)
    end = endings.ending(with_attempts(running, attempt), CONFIG, attempt, outcome)
    assert (end.state, end.event, end.next_stage) == (AttemptState.SUCCEEDED, event, stage)


# -- suspects ------------------------------------------------------------------------------------

GPUS = ("cuda:0", "cuda:1", "cuda:2")


def on(slot: str, candidate: int, state: AttemptState, **more: Any) -> Attempt:
    return attempt_of(candidate, "pretrain_0", state, slots=(slot,), **more)


def test_a_gpu_on_which_attempts_of_several_candidates_are_lost_in_a_row_is_suspect(generation_1):
    good = on("cuda:1", 5, AttemptState.SUCCEEDED)
    bad = [on("cuda:0", n, AttemptState.LOST) for n in (4, 4, 6)]
    found = with_attempts(generation_1, good, *bad)
    assert list(endings.suspects(found, GPUS)) == ["cuda:0"]
    assert endings.suspects(with_attempts(generation_1, good, *bad[:2]), GPUS) == {}


def test_losses_of_one_candidate_or_everywhere_or_with_the_daemon_put_no_gpu_under_suspicion(
    generation_1,
):
    good = on("cuda:1", 5, AttemptState.SUCCEEDED)
    one = [on("cuda:0", 4, AttemptState.LOST) for _ in range(5)]
    assert endings.suspects(with_attempts(generation_1, good, *one), GPUS) == {}
    everywhere = [on(slot, n, AttemptState.LOST) for n in (4, 5, 6) for slot in GPUS]
    assert endings.suspects(with_attempts(generation_1, *everywhere), GPUS) == {}
    verdict = AttemptVerdict.INTERRUPTED
    went = [on("cuda:0", n, AttemptState.LOST, verdict=verdict) for n in (4, 5, 6)]
    assert endings.suspects(with_attempts(generation_1, good, *went), GPUS) == {}


def test_a_cpu_share_is_never_suspect(generation_1):
    bad = [attempt_of(n, "pretrain_0", AttemptState.LOST, slots=("cpu:0",)) for n in (4, 5, 6)]
    good = on("cpu:1", 5, AttemptState.SUCCEEDED)
    assert endings.suspects(with_attempts(generation_1, good, *bad), SLOTS) == {}
