"""Faults of the machine, one by one: what the daemon does about each, and that the search ends as
it would have ended without it."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract import digests
from nasd.contract.protocol import AttemptFolder, Heartbeat, Outcome, Spec, read_metrics, write
from nasd.control.machine import FAULTS, GB, LEAST_RESERVE, RECOVERY_SECONDS, SPACE_AGAIN
from nasd.control.tick import Tick
from nasd.launch.gpus import Gpu
from nasd.policy import scheduling
from nasd.policy.endings import BACKOFF_SECONDS
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, AttemptVerdict, QuarantineKind, State
from nasd.record.state import Snapshot
from nasd.record.store import BASELINE
from tests.conftest import (
    FakeLauncher,
    all_succeed,
    small_config,
    story,
    succeeded,
    without_summaries,
)
from tests.faults import (
    GPUS,
    PATIENT,
    Box,
    Fuse,
    Killed,
    RoughLauncher,
    at_stage,
    attempts_of,
    fragile,
    get,
    small_search,
    some_diverge,
    stage_of,
)

pytestmark = pytest.mark.usefixtures("no_summaries")

MINUTE = 60.0
ON_GPUS = small_config(slots__devices=list(GPUS), daemon__infrastructure_retries=10_000)
STALL = MINUTE * PATIENT.daemon.stall_minutes
RESERVE = PATIENT.daemon.disk_reserve_gb * GB
Folder = Callable[[], StateFolder]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    state = StateFolder(tmp_path_factory.mktemp("calm") / "state")
    with without_summaries():
        told = story(small_search(state, some_diverge).store)
    assert told["state"] == "complete"
    return told


def slow(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    """Hours to each stage."""
    return 7200.0, some_diverge(spec, before)[1]


def two_run(found: Snapshot) -> bool:
    return len(found.live_attempts) == 2


def told(tick: Tick, event: str) -> list[str]:
    """Details of the daemon's own events of a kind."""
    rows = tick.store._db.execute("SELECT detail FROM event WHERE event = ? ORDER BY id", (event,))
    return [row[0] for row in rows]


def nothing_was_lost(found: Snapshot) -> bool:
    return not [one for one in found.attempts if one.state is AttemptState.LOST]


# -- asked to stop -------------------------------------------------------------------------------


def test_one_that_dies_of_the_request_to_stop_because_it_still_starts_is_not_lost(
    folder: Folder, undisturbed
):
    box = Box(folder())
    tick = box.daemon()
    found = box.drive(tick, two_run)

    def die(token: str) -> None:
        box.launcher.jobs.pop(token, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box.launcher, "stop", die)
        box.free = 0.0
        tick()
        tick()
    for one in found.live_attempts:
        ended = get(tick.store.read(), one.id)
        assert (ended.state, ended.verdict) == (AttemptState.PREEMPTED, "stopped")
        assert ended.message == "ended by the request to stop, before it could hear it"
    box.free = 1e15
    box.drive(tick)
    assert story(tick.store) == undisturbed


# -- silence -------------------------------------------------------------------------------------


def test_a_worker_that_falls_silent_is_ended_after_stall_minutes_and_not_before(
    folder: Folder, undisturbed
):
    box = Box(folder(), script=slow)
    tick = box.daemon()
    found = box.drive(tick, two_run)
    one, other = found.live_attempts
    box.turns(tick, 5 * MINUTE)
    box.launcher.silent.add(one.token)
    assert box.turns(tick, STALL - 30).live_attempts[0].id == one.id
    found = box.turns(tick, 2 * MINUTE)
    ended = get(found, one.id)
    assert (ended.state, ended.verdict) == (AttemptState.LOST, "")
    assert ended.message == "stalled: silent for 10 min while training, step 0"
    assert get(found, other.id).live
    assert found.candidates[one.candidate].state is not State.FAILED
    found = box.drive(tick, lambda found: two_run(found) and found.live_attempts[1].number > 1)
    assert found.live_attempts[1].candidate == one.candidate  # tried again
    box.drive(tick)
    assert story(tick.store) == undisturbed


def test_a_heartbeat_with_patience_extends_the_silence(folder: Folder):
    box = Box(folder(), script=slow)
    tick = box.daemon()
    tick()
    (one,) = tick.store.read().live_attempts
    box.launcher.silent.add(one.token)
    heartbeat = tick.state.attempt(one.id).heartbeat
    write(Heartbeat(doing="downloading", at=box.wall(), patience=60 * MINUTE), heartbeat)
    assert get(box.turns(tick, 60 * MINUTE), one.id).live
    found = box.turns(tick, 2 * MINUTE)
    assert get(found, one.id).message == "stalled: silent for 60 min while downloading, step 0"


def test_a_worker_without_any_sign_of_life_is_ended_within_start_minutes(
    folder: Folder, undisturbed
):
    config = small_config(daemon__start_minutes=3, daemon__infrastructure_retries=10_000)
    box = Box(folder(), config)
    box.launcher.mute.add((1, "pretrain_0"))
    tick = box.daemon()
    found = box.drive(tick, lambda found: bool(attempts_of(found, 1, "pretrain_0")))
    mute = next(one for one in found.live_attempts if one.candidate == 1)
    assert get(box.turns(tick, 3 * MINUTE), mute.id).live
    box.launcher.mute.clear()
    ended = get(box.turns(tick, MINUTE), mute.id)
    assert ended.state is AttemptState.LOST
    assert ended.message == "no sign of life within 3 min of its start"
    box.drive(tick)
    assert story(tick.store) == undisturbed


def test_a_daemon_that_was_away_itself_takes_nobody_for_stalled(folder: Folder):
    """Both were frozen, as a container can be: the daemon looks before the worker writes."""
    box = Box(folder(), script=slow)
    tick = box.daemon()
    tick()
    (one,) = tick.store.read().live_attempts
    box.turns(tick, 5 * MINUTE)
    box.launcher.silent.add(one.token)
    box.let_pass(60 * MINUTE)
    tick()
    box.launcher.silent.clear()
    assert get(box.turns(tick, 5 * MINUTE), one.id).live
    box.launcher.silent.add(one.token)  # and in earnest
    assert not get(box.turns(tick, STALL + MINUTE), one.id).live


def test_a_damaged_heartbeat_is_no_silence_and_no_sign_of_life(folder: Folder):
    box = Box(folder(), script=slow)
    tick = box.daemon()
    tick()
    (one,) = tick.store.read().live_attempts
    box.launcher.silent.add(one.token)
    tick.state.attempt(one.id).heartbeat.write_text('{"doing": "trai')
    assert get(box.turns(tick, STALL), one.id).live
    assert not get(box.turns(tick, MINUTE), one.id).live


# -- clocks --------------------------------------------------------------------------------------

HOURS = st.integers(-40, 40).map(lambda hours: 3600.0 * hours)


@settings(max_examples=6)
@given(jumps=st.lists(HOURS, min_size=1, max_size=20))
def test_a_wall_clock_that_jumps_stalls_nobody_and_the_ledger_stays_right(
    folder: Folder, undisturbed, jumps
):
    box = Box(folder(), script=lambda spec, before: (400.0, some_diverge(spec, before)[1]))
    tick = box.daemon()
    for jump in (*jumps, 0.0):
        for _ in range(4):
            tick()
            box.let_pass(200.0)
        box.wall.ahead += jump
    found = box.drive(tick)
    assert nothing_was_lost(found)
    assert found.gpu_hours(0.0) == pytest.approx(sum(box.launcher.held.values()) / 3600)
    assert found.gpu_hours(0.0) == pytest.approx(
        sum(len(one.slots) * (one.ended_at - one.started_at) for one in found.attempts) / 3600
    )
    assert story(tick.store) == undisturbed


@settings(max_examples=10)
@given(jumps=st.lists(HOURS, min_size=1, max_size=4))
def test_a_wall_clock_that_jumps_makes_nobody_wait_longer_than_the_back_off(folder: Folder, jumps):
    box = Box(folder(), PATIENT, at_stage("prepare", [None] * 4, BASELINE))
    tick = box.daemon()
    for jump in (*jumps, *[0.0] * 4)[:4]:
        before = len(tick.store.read().attempts)
        tick()
        assert len(tick.store.read().attempts) == before + 1
        box.let_pass()
        tick()
        box.wall.ahead += jump
        box.let_pass(max(BACKOFF_SECONDS))


def test_a_clock_that_jumps_ahead_does_not_spend_the_budget(folder: Folder, undisturbed):
    config = small_config(experiment__budget_gpu_hours=100.0)
    box = Box(folder(), config)
    tick = box.daemon()
    box.drive(tick, two_run)
    box.wall.ahead += 3600 * 1000
    found = box.drive(tick)
    assert found.experiment.state == "complete"
    assert found.gpu_hours(0.0) < 10
    assert story(tick.store) == undisturbed


def test_a_person_can_resume_a_search_although_the_clock_was_set_back(folder: Folder):
    box = Box(folder(), small_config(), at_stage("prepare", [None] * 6, BASELINE))
    tick = box.daemon()
    assert box.drive(tick).experiment.state == "halted"
    box.wall.ahead -= 10 * 3600
    tick.store.resume(tick.clock())
    assert box.drive(tick).experiment.state == "complete"


# -- GPUs ----------------------------------------------------------------------------------------


def test_a_lost_gpu_is_quarantined_and_its_attempt_is_ended_at_once(folder: Folder, undisturbed):
    box = Box(folder(), ON_GPUS)
    tick = box.daemon()
    found = box.drive(tick, two_run)
    one, other = found.live_attempts
    box.faults[one.slots[0]] = "GPU is lost"
    for _ in range(FAULTS):
        assert get(tick.store.read(), one.id).live
        box.let_pass(1.0)
        tick()
    found = tick.store.read()
    known = found.quarantine[one.slots[0]]
    assert (known.kind, known.reason) == ("lost", "GPU is lost")
    assert told(tick, "quarantine") == [f"{one.slots[0]}: GPU is lost"]
    ended = get(found, one.id)
    assert (ended.state, ended.message) == (AttemptState.LOST, f"{one.slots[0]}: GPU is lost")
    assert one.token not in box.launcher.jobs  # it was alive
    assert get(found, other.id).live
    found = box.drive(tick)
    later = [a for a in found.attempts if a.id > other.id]
    assert not any(one.slots[0] in a.slots for a in later)
    assert told(tick, "quarantine") == [f"{one.slots[0]}: GPU is lost"]  # said once
    assert story(tick.store) == undisturbed


def test_with_one_gpu_left_the_stages_run_narrower(folder: Folder, undisturbed):
    box = Box(folder(), ON_GPUS)
    tick = box.daemon()
    box.drive(tick, two_run)
    box.faults |= dict.fromkeys(GPUS[:3], "GPU is lost")
    last = tick.store.read().attempts[-1].id
    found = box.drive(tick)
    assert {one.slots for one in found.attempts if one.id > last} == {("cuda:3",)}
    assert {one.stage for one in found.attempts if one.id > last} >= {"pretrain_0", "finetune"}
    assert story(tick.store) == undisturbed


def test_a_gpu_that_fails_to_answer_once_is_not_lost(folder: Folder, undisturbed):
    box = Box(folder(), ON_GPUS)
    tick = box.daemon()
    for turn in range(10_000):
        box.faults = {} if turn % FAULTS else dict.fromkeys(GPUS, "the driver did not answer")
        tick()
        if tick.store.read().experiment.state != "running":
            break
        box.let_pass()
    assert told(tick, "quarantine") == []
    assert nothing_was_lost(tick.store.read())
    assert story(tick.store) == undisturbed


def test_without_any_gpu_the_search_waits_and_charges_nobody(folder: Folder, undisturbed):
    box = Box(folder(), ON_GPUS)
    tick = box.daemon()
    box.drive(tick, two_run)
    box.faults |= dict.fromkeys(GPUS, "the driver did not answer within 20 s")
    box.turns(tick, 10, every=5)
    found = box.turns(tick, 600 * MINUTE, every=MINUTE)
    assert found.live_attempts == ()
    assert len([one for one in found.attempts if one.state is AttemptState.LOST]) == 2
    box.faults.clear()
    assert box.drive(tick).experiment.state == "complete"
    assert story(tick.store) == undisturbed


def test_a_gpu_that_answers_again_is_used_again_after_a_while_and_not_before(folder: Folder):
    box = Box(folder(), ON_GPUS)
    tick = box.daemon()
    box.faults["cuda:0"] = "GPU is lost"
    box.drive(tick, lambda found: found.generation is not None)
    del box.faults["cuda:0"]
    tick()
    last = tick.store.read().attempts[-1].id
    assert "cuda:0" in box.turns(tick, RECOVERY_SECONDS - 60).quarantine
    box.faults["cuda:0"] = "GPU is lost"  # once more: its time begins anew
    box.turns(tick, 30)
    del box.faults["cuda:0"]
    box.turns(tick, 30)  # it answers
    found = box.turns(tick, RECOVERY_SECONDS - 30)
    assert "cuda:0" in found.quarantine
    assert not any("cuda:0" in one.slots for one in found.attempts if one.id > last)
    found = box.turns(tick, 60)
    assert "cuda:0" not in found.quarantine
    assert told(tick, "released") == ["cuda:0"]
    found = box.drive(tick)
    assert any("cuda:0" in one.slots for one in found.attempts)


def test_a_lost_gpu_has_to_answer_to_a_new_daemon_just_as_long(folder: Folder):
    box = Box(folder(), ON_GPUS)
    tick = box.daemon()
    box.faults["cuda:0"] = "GPU is lost"
    box.turns(tick, 10, every=1)
    box.faults.clear()
    box.turns(tick, RECOVERY_SECONDS / 2)
    box.kill(tick)
    tick = box.daemon()
    tick.begin()
    tick()
    assert "cuda:0" in box.turns(tick, RECOVERY_SECONDS - 60).quarantine
    assert "cuda:0" not in box.turns(tick, 2 * MINUTE).quarantine


def test_what_the_driver_says_counts_for_nothing_before_it_says_anything(folder: Folder):
    box = Box(folder(), ON_GPUS)
    tick = box.daemon()
    tick.health = lambda: None
    found = box.drive(tick)
    assert (found.experiment.state, found.quarantine) == ("complete", {})


def test_a_free_gpu_in_use_by_somebody_else_stays_theirs_until_they_are_gone(
    folder: Folder, undisturbed
):
    box = Box(folder(), ON_GPUS)
    box.strangers |= {"cuda:0", "cuda:2"}
    tick = box.daemon()
    found = box.drive(tick, lambda found: two_run(found) or bool(found.decisions))
    assert {slot for one in found.attempts for slot in one.slots} <= {"cuda:1", "cuda:3"}
    assert found.quarantine["cuda:2"].kind == "foreign"
    assert found.quarantine["cuda:2"].reason == "in use by somebody else (pid 4242, 3.0 GB)"
    box.strangers.clear()
    tick()
    assert tick.store.read().quarantine == {}  # at once
    assert told(tick, "released") == ["cuda:0", "cuda:2"]
    found = box.drive(tick)
    assert any("cuda:0" in one.slots for one in found.attempts)
    assert story(tick.store) == undisturbed


def test_somebody_else_on_a_leased_gpu_does_not_touch_the_attempt_there(folder: Folder):
    box = Box(folder(), ON_GPUS, slow)
    tick = box.daemon()
    one = box.drive(tick, two_run).live_attempts[0]
    box.strangers.add(one.slots[0])
    found = box.turns(tick, 60 * MINUTE)
    assert get(found, one.id).live
    assert found.quarantine[one.slots[0]].kind == "foreign"  # for whoever would come next
    found = box.turns(tick, 70 * MINUTE)
    assert get(found, one.id).state is AttemptState.SUCCEEDED
    found = box.turns(tick, 120 * MINUTE)
    assert not any(one.slots[0] in later.slots for later in found.attempts if later.id > one.id + 1)


def test_our_own_workers_are_nobody_else(folder: Folder):
    box = Box(folder(), ON_GPUS)
    tick = box.daemon()
    found = box.drive(tick)
    assert told(tick, "quarantine") == []
    assert found.experiment.state == "complete"


def test_a_worker_of_ours_that_has_just_ended_is_nobody_else(folder: Folder):
    box = Box(folder(), ON_GPUS)
    box.health_age = 30.0
    tick = box.daemon()
    for _ in range(40):
        tick()
        box.let_pass(7.0)
    assert len(tick.store.read().attempts) > 4
    assert told(tick, "quarantine") == []


def test_a_gpu_that_comes_back_with_somebody_else_on_it_is_not_used(folder: Folder):
    box = Box(folder(), ON_GPUS, slow)
    tick = box.daemon()
    box.faults |= dict.fromkeys(GPUS, "GPU is lost")
    box.turns(tick, 10, every=1)
    last = tick.store.read().attempts[-1].id
    box.faults.clear()
    box.strangers |= set(GPUS)  # a person tries the GPUs
    found = box.turns(tick, 2 * RECOVERY_SECONDS)
    assert found.attempts[-1].id == last


MEMORY = Outcome(verdict="out_of_memory", message="no 16 GB left")


def test_memory_that_somebody_else_had_is_not_the_candidates_fault(folder: Folder):
    box = Box(folder(), ON_GPUS, at_stage("finetune", [MEMORY, MEMORY, MEMORY]))
    tick = box.daemon()
    found = box.drive(tick, lambda found: bool(attempts_of(found, 1, "finetune")))
    one = next(a for a in found.live_attempts if (a.candidate, a.stage) == (1, "finetune"))
    box.strangers.add(one.slots[0])
    box.drive(tick, lambda found: not get(found, one.id).live)
    ended = get(tick.store.read(), one.id)
    assert (ended.state, ended.verdict) == (AttemptState.LOST, "")
    assert ended.message == ("out of memory on a GPU in use by somebody else (pid 4242, 3.0 GB)")
    box.strangers.clear()
    found = box.drive(tick)  # and the next two are its own
    assert attempts_of(found, 1, "finetune") == ["lost", "failed", "failed", "succeeded"]
    specs = [s for s in box.launcher.specs if (s.candidate, stage_of(s)) == (1, "finetune")]
    assert [one.halvings for one in specs] == [0, 0, 1, 2]


class OneBadGpu(RoughLauncher):
    """Whatever runs on cuda:1 is lost, which the driver does not tell."""

    mended = False

    def start(self, folder: Any, slots: Any, token: str) -> dict[str, Any]:
        process = super().start(folder, slots, token)
        if "cuda:1" in slots and not self.mended:
            end, _, *rest = self.jobs[token]
            self.jobs[token] = (end - 29.0, None, *rest)
        return process


def suspicious(state: StateFolder) -> tuple[Box, Tick]:
    """A search whose second GPU is suspect by now."""
    box = Box(state, ON_GPUS)
    box.launcher.__class__ = OneBadGpu
    tick = box.daemon()
    found = box.drive(tick, lambda found: bool(found.quarantine))
    assert found.quarantine["cuda:1"].kind == "suspect"
    return box, tick


def test_a_gpu_that_loses_whatever_runs_on_it_is_left_alone(folder: Folder, undisturbed):
    box, tick = suspicious(folder())
    last = tick.store.read().attempts[-1].id
    found = box.drive(tick)
    assert not any("cuda:1" in one.slots for one in found.attempts if one.id > last)
    assert "starting nasd again tries it again" in found.quarantine["cuda:1"].reason
    assert story(tick.store) == undisturbed


def test_a_new_daemon_releases_suspects_and_slots_that_are_gone_and_keeps_what_is_lost(
    folder: Folder,
):
    box, tick = suspicious(folder())
    tick.store.quarantine("cuda:2", QuarantineKind.LOST, "GPU is lost", box.wall())
    tick.store.quarantine("cuda:9", QuarantineKind.LOST, "GPU is lost", box.wall())
    box.kill(tick)
    tick = box.daemon()
    tick.begin()
    assert set(tick.store.read().quarantine) == {"cuda:2"}


def test_a_suspect_gets_its_second_chance_with_a_new_daemon(folder: Folder):
    box, tick = suspicious(folder())
    tick.stop()
    box.kill(tick)
    assert isinstance(box.launcher, OneBadGpu)
    box.launcher.mended = True
    tick = box.daemon()
    tick.begin()
    last = tick.store.read().attempts[-1].id
    found = box.drive(tick)
    assert any("cuda:1" in one.slots for one in found.attempts if one.id > last)


def test_memory_that_is_short_because_gpus_are_lost_is_not_the_candidates_fault(folder: Folder):
    changes = {f"stages__{one.name}__slots": 4 for one in PATIENT.stages if one.train != "none"}
    config = small_config(slots__devices=list(GPUS), **changes)

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        """Two examples a rank are all that fits: what a whole machine gives each."""
        if spec.stage is not None and spec.stage.train != "none":
            ranks = len(tick.store.read().leases)
            if max(1, -(-spec.stage.batch // ranks) >> spec.halvings) > 2:
                return 30.0, MEMORY
        return all_succeed(spec, before)

    box = Box(folder(), config, script)
    tick = box.daemon()
    box.drive(tick, lambda found: found.generation is not None)
    box.faults |= dict.fromkeys(GPUS[:3], "GPU is lost")
    found = box.drive(tick)
    assert not [one for one in found.candidates.values() if one.state is State.FAILED]


# -- the disk ------------------------------------------------------------------------------------


def test_a_disk_that_fills_holds_the_search_and_it_goes_on_by_itself(folder: Folder, undisturbed):
    box = Box(folder())
    tick = box.daemon()
    live = box.drive(tick, two_run).live_attempts
    box.free = RESERVE - 1
    box.let_pass(1.0)
    tick()
    found = tick.store.read()
    assert [get(found, one.id).state for one in live] == [AttemptState.PREEMPTED] * 2
    assert found.leases == {}
    reason = found.experiment.hold
    assert str(box.state.path) in reason
    assert "daemon.disk_reserve_gb = 10: the search goes on by itself" in reason
    assert told(tick, "hold") == [reason]
    for free in (0.0, RESERVE, RESERVE * SPACE_AGAIN - 1):  # hysteresis
        box.free = free
        after = box.turns(tick, 10 * MINUTE)
        assert (after.attempts, after.experiment.hold) == (found.attempts, reason)
    assert (told(tick, "hold"), told(tick, "released")) == ([reason], [])
    box.free = RESERVE * SPACE_AGAIN
    tick()
    assert tick.store.read().experiment.hold == ""
    assert len(tick.store.read().live_attempts) == 2
    assert told(tick, "released") == [""]
    box.drive(tick)
    assert story(tick.store) == undisturbed


def test_a_disk_at_its_reserve_stops_nobody(folder: Folder, undisturbed):
    box = Box(folder())
    box.free = RESERVE
    tick = box.daemon()
    found = box.drive(tick)
    assert not [one for one in found.attempts if one.state is AttemptState.PREEMPTED]
    assert story(tick.store) == undisturbed


def test_a_hold_outlives_the_daemon_and_is_lifted_by_the_next_one(folder: Folder, undisturbed):
    box = Box(folder())
    tick = box.daemon()
    box.drive(tick, two_run)
    box.free = RESERVE / 2
    tick()
    box.kill(tick)
    box.free = RESERVE * 1.05
    tick = box.daemon()
    tick.begin()
    found = box.turns(tick, 10 * MINUTE)
    assert found.experiment.hold != ""
    assert found.live_attempts == ()
    box.free = RESERVE * 2
    box.drive(tick)
    assert story(tick.store) == undisturbed


FULL = sqlite3.OperationalError("database or disk is full")


@settings(max_examples=6)
@given(gaps=st.lists(st.integers(1, 120), min_size=5, max_size=60))
def test_a_database_that_cannot_write_fails_that_turn_alone(folder: Folder, undisturbed, gaps):
    """The same daemon goes on; the disk fills meanwhile, and is freed again."""
    box = Box(folder())
    tick = box.daemon()
    failed = 0
    with fragile(tick, Fuse(*gaps, error=FULL)):
        for turn in range(1000):
            box.free = 0.0 if turn % 40 in (20, 21, 22) else 1e15
            try:
                tick()
            except sqlite3.OperationalError:
                failed += 1
            if tick.store.read().experiment.state != "running":
                break
            box.let_pass()
    assert failed >= 5
    assert tick.store.read().experiment.state == "complete"
    assert story(tick.store) == undisturbed


def test_an_attempt_whose_start_could_not_be_noted_is_charged_until_it_is_cleared(folder: Folder):
    """Its process has begun; then the disk is full, for one line of the database."""
    box = Box(folder())
    tick = box.daemon()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tick.store, "attempt_runs", Fuse(1, error=FULL).around(lambda *_: None))
        with pytest.raises(sqlite3.OperationalError):
            tick()
    (one,) = tick.store.read().live_attempts
    assert (one.state, one.process) == (AttemptState.STARTING, None)
    box.let_pass(4 * MINUTE)
    tick.observe()
    ended = get(tick.store.read(), one.id)
    assert ended.ended_at is not None
    assert ended.ended_at - one.started_at == pytest.approx(4 * MINUTE)


def test_a_hold_that_cannot_be_written_stops_the_workers_all_the_same(folder: Folder):
    box = Box(folder())
    tick = box.daemon()
    live = box.drive(tick, two_run).live_attempts
    box.free = 0.0
    with fragile(tick, Fuse(1, error=FULL)), suppress(sqlite3.OperationalError):
        tick()
    assert box.launcher.jobs == {}
    tick()
    found = tick.store.read()
    assert {get(found, one.id).state for one in live} == {AttemptState.PREEMPTED}
    assert found.experiment.hold != ""


# -- memory --------------------------------------------------------------------------------------


def test_who_runs_out_of_memory_is_started_again_with_half_the_micro_batch(folder: Folder):
    config = small_config()
    tick = small_search(folder(), at_stage("pretrain_1", [MEMORY]), config)
    specs = [s for s in tick.launcher.specs if (s.candidate, stage_of(s)) == (1, "pretrain_1")]
    assert [one.halvings for one in specs] == [0, 1]
    found = tick.store.read()
    assert attempts_of(found, 1, "pretrain_1") == ["failed", "succeeded"]
    later = [s for s in tick.launcher.specs if (s.candidate, stage_of(s)) == (1, "finetune")]
    assert [one.halvings for one in later] == [0]  # another stage, another size
    calm = small_search(folder(), all_succeed, config)
    assert story(tick.store) == story(calm.store)


def test_who_runs_out_of_memory_with_one_example_at_a_time_has_failed(folder: Folder):
    tick = small_search(folder(), at_stage("pretrain_1", [MEMORY] * 6), small_config())
    found = tick.store.read()
    assert attempts_of(found, 1, "pretrain_1") == ["failed"] * 6  # of 32, 16, 8, 4, 2 and 1
    assert found.experiment.state == "complete"
    assert found.candidates[1].state is State.FAILED
    assert found.candidates[1].reason == "out_of_memory: no 16 GB left"


# -- what workers leave --------------------------------------------------------------------------


def test_an_outcome_with_another_token_counts_for_nothing(folder: Folder, undisturbed):
    box = Box(folder())
    tick = box.daemon()
    tick()
    (one,) = tick.store.read().live_attempts
    del box.launcher.jobs[one.token]
    spec = box.launcher.specs[-1]
    attempt = tick.state.attempt(one.id)
    write(succeeded(spec).model_copy(update={"token": "another"}), attempt.outcome)
    attempt.result.mkdir()
    tick()
    found = tick.store.read()
    assert attempts_of(found, BASELINE, "prepare") == [AttemptState.LOST]
    assert found.results == {}
    assert not tick.state.result(BASELINE, "prepare").exists()
    assert not attempt.result.exists()
    box.drive(tick)
    assert story(tick.store) == undisturbed


def test_what_an_attempt_of_that_number_left_is_removed_before_one_starts(folder: Folder):
    """As after a restored backup. The launcher insists on an empty folder."""
    box = Box(folder(), checkpoints=True)
    for number in range(1, 8):
        stale = box.state.attempt(number)
        stale.checkpoints.joinpath("step-000000005").mkdir(parents=True)
        stale.result.mkdir()
        write(Outcome(verdict="succeeded", has_result=True, token="old"), stale.outcome)
        write(Heartbeat(doing="leaving", at=box.wall() + 1e6), stale.heartbeat)
    tick = box.daemon()
    found = box.drive(tick)
    assert nothing_was_lost(found)


def test_checkpoints_that_another_attempt_of_that_number_left_are_never_resumed(folder: Folder):
    """The daemon is killed between the attempt's row and the removal of the folder that stood
    under its number."""
    box = Box(folder(), checkpoints=True)
    stale = box.state.attempt(1).checkpoints / "step-000000099"
    stale.mkdir(parents=True)
    (stale / "owner.json").write_text(json.dumps([12, "pretrain_1"]))
    tick = box.daemon()
    tick.begin()
    with fragile(tick, Fuse(3)), suppress(Killed):
        tick()
    assert get(tick.store.read(), 1).state is AttemptState.STARTING
    assert box.state.attempt(1).path.exists()
    box.kill(tick)
    tick = box.daemon()
    tick.begin()
    tick()  # the launcher insists that it resumes what is its own
    assert get(tick.store.read(), 1).reached == 0


WHOLE = Outcome(verdict="stopped", message="asked to", token="t").model_dump_json()


@pytest.mark.parametrize("length", [0, 1, len(WHOLE) // 2, len(WHOLE) - 1])
def test_an_outcome_cut_off_anywhere_counts_as_none(folder: Folder, undisturbed, length):
    box = Box(folder())
    tick = box.daemon()
    one = box.drive(tick, two_run).live_attempts[0]
    del box.launcher.jobs[one.token]
    tick.state.attempt(one.id).outcome.write_text(WHOLE[:length])
    tick()
    assert get(tick.store.read(), one.id).state is AttemptState.LOST
    box.drive(tick)
    assert story(tick.store) == undisturbed


@pytest.mark.parametrize("digit", ["the score's", "the digest's"])
def test_an_outcome_with_another_digit_counts_as_none(folder: Folder, undisturbed, digit):
    box = Box(folder(), script=some_diverge)
    leave, changed = box.launcher._leave, list[Path]()

    def scored(attempt: AttemptFolder, outcome: Outcome, token: str) -> None:
        leave(attempt, digests.signed(outcome.model_copy(update={"token": token})), token)
        if "f1" in outcome.metrics and not changed:
            changed.append(attempt.outcome)
            said = json.loads(attempt.outcome.read_text())
            if digit == "the score's":
                said["metrics"]["f1"] += 1
            else:
                said["digest"] = said["digest"][:-1] + "?"
            attempt.outcome.write_text(json.dumps(said))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box.launcher, "_leave", scored)
        tick = box.daemon()
        found = box.drive(tick)
    (one,) = changed
    assert get(found, int(one.parent.name)).state is AttemptState.LOST
    assert story(tick.store) == undisturbed


@pytest.mark.parametrize("content", ["", '{"doing": "tr', '{"doing": 1, "at": "soon"}', "\0" * 99])
def test_a_heartbeat_that_is_damaged_does_not_keep_an_attempt_from_its_end(
    folder: Folder, undisturbed, content
):
    box = Box(folder())
    tick = box.daemon()
    one = box.drive(tick, two_run).live_attempts[0]
    tick.state.attempt(one.id).heartbeat.write_text(content)
    box.kill(tick)
    tick = box.daemon()
    tick.begin()
    ended = get(tick.store.read(), one.id)
    assert (ended.state, ended.ended_at) == (AttemptState.LOST, ended.started_at)
    box.drive(tick)
    assert story(tick.store) == undisturbed


LINES = [json.dumps({"step": step, "loss": 1 / step}).encode() + b"\n" for step in range(1, 6)]


@given(cut=st.integers(0, sum(map(len, LINES))))
def test_metrics_cut_off_anywhere_lose_nothing_but_the_line_that_was_being_written(
    tmp_path: Path, cut: int
):
    path, content = tmp_path / "metrics.jsonl", b"".join(LINES)
    path.write_bytes(content[:cut])
    before, position = read_metrics(path)
    path.write_bytes(content)
    after, end = read_metrics(path, position)
    assert before + after == [json.loads(line) for line in LINES]
    assert end == len(content)


def test_a_damaged_line_of_metrics_costs_no_other(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINES[0] + LINES[1][:7] + LINES[2] + b"\0\xff\n" + b"\n" + LINES[3])
    lines, end = read_metrics(path)
    assert [line["step"] for line in lines] == [1, 4]
    assert end == path.stat().st_size
    assert read_metrics(tmp_path / "none.jsonl") == ([], 0)


# -- weights that are gone -----------------------------------------------------------------------


def test_weights_that_are_gone_halt_the_search_until_they_are_back(folder: Folder, undisturbed):
    box = Box(folder())
    tick = box.daemon()
    found = box.drive(tick, lambda found: found.candidates[BASELINE].stage == "finetune")
    found = box.drive(tick, lambda found: bool(found.live_attempts))
    parent = tick.state.result(BASELINE, "prepare")
    parent.rename(aside := tick.state.path / "aside")
    found = box.drive(tick)
    assert found.experiment.state == "halted"
    assert str(parent) in found.experiment.reason
    assert "which is gone: put it back" in found.experiment.reason
    assert all(one.state is not State.FAILED for one in found.candidates.values())
    tick()
    aside.rename(parent)
    tick.store.resume(tick.clock())
    box.drive(tick)
    assert story(tick.store) == undisturbed


def test_damaged_weights_halt_the_search_with_their_name_and_nobody_is_blamed(
    folder: Folder, undisturbed
):
    file = "/state/candidates/0/prepare/model.safetensors is damaged"
    whole = False

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if stage_of(spec) == "pretrain_0" and not whole:
            return 1.0, Outcome(verdict="machine", message=file)
        return some_diverge(spec, before)

    box = Box(folder(), script=script)
    tick = box.daemon()
    found = box.drive(tick)
    assert found.experiment.state == "halted"
    assert file in found.experiment.reason
    assert not [one for one in found.candidates.values() if one.state is State.FAILED]
    assert max(len(attempts_of(found, one, "pretrain_0")) for one in (1, 2, 3)) == 2
    tick.stop()
    whole = True
    tick.store.resume(box.wall())
    box.drive(tick)
    assert story(tick.store) == undisturbed


def test_the_same_error_of_everybody_halts_the_search_long_before_its_end(folder: Folder):
    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if stage_of(spec) == "finetune" and spec.candidate:
            said = f"RuntimeError: no kernel for {spec.candidate} heads"
            return 1.0, Outcome(verdict="error", message=said)
        return all_succeed(spec, before)

    tick = small_search(folder(), script)
    found = tick.store.read()
    assert found.experiment.state == "halted"
    assert "3 candidates in a row failed at finetune with the same error" in found.experiment.reason
    assert found.generation is not None and found.generation.number == 0
    failed = [one.id for one in found.candidates.values() if one.state is State.FAILED]
    assert len(failed) <= 2
    assert all(f"`nasd retry {one}`" in found.experiment.reason for one in failed)


def test_a_cache_is_looked_for_where_the_state_folder_stands_now(folder: Folder):
    state = folder()
    tick = small_search(state, all_succeed)
    assert isinstance(tick.launcher, FakeLauncher)
    caches = {(spec.mlm_cache, spec.qa_cache) for spec in tick.launcher.specs if spec.stage}
    assert caches == {(str(state.cache / "mlm"), str(state.cache / "qa"))}


def test_a_disk_that_fills_up_holds_the_search_also_where_no_reserve_is_asked_for(folder: Folder):
    box = Box(folder(), small_config(daemon__disk_reserve_gb=0))
    tick = box.daemon()
    box.drive(tick, two_run)
    box.free = LEAST_RESERVE - 1
    tick()
    tick()
    found = tick.store.read()
    assert not found.live_attempts
    assert "less than the least of 0.05: the search goes on by itself" in found.experiment.hold
    box.free = LEAST_RESERVE * SPACE_AGAIN + 1
    assert box.drive(tick).experiment.state == "complete"


def test_once_the_search_is_halted_nothing_starts_any_more(folder: Folder):
    box = Box(folder(), script=all_succeed)
    tick = box.daemon()
    box.drive(tick, lambda found: [a.stage for a in found.live_attempts] == ["finetune"] * 2)
    box.free = 0.0
    tick()  # both are stopped, and will start again together
    found = tick.store.read()
    assert found.live_attempts == ()
    box.free = 1e15
    released = replace(found, experiment=replace(found.experiment, hold=""))
    first, _ = [
        one.candidate for one in scheduling.starts(released, PATIENT, tick.slots, box.wall())
    ]
    tick.state.result(first, "pretrain_1").rename(tick.state.path / "aside")
    tick()
    found = tick.store.read()
    assert found.experiment.state == "halted"
    assert found.live_attempts == ()


# -- kills and adoption --------------------------------------------------------------------------


def test_attempts_that_a_killed_daemon_took_along_never_count_towards_the_halt(
    folder: Folder, undisturbed
):
    config = small_config()
    assert config.daemon.infrastructure_retries < 10
    box = Box(folder(), config)
    for _ in range(50):
        tick = box.daemon()
        tick.begin()
        box.turns(tick, 10.0, every=5.0)
        box.kill(tick)
    tick = box.daemon()
    tick.begin()
    found = tick.store.read()
    # Nobody backed off.
    assert [one.verdict for one in found.attempts] == [AttemptVerdict.INTERRUPTED] * 50
    assert {one.state for one in found.attempts} == {AttemptState.LOST}
    assert found.experiment.state == "running"
    box.drive(tick)
    assert story(tick.store) == undisturbed


def test_attempts_that_are_lost_under_a_daemon_count_although_others_were_interrupted(
    folder: Folder,
):
    """Each daemon sees one attempt lost, and takes the next one along when it is killed."""
    box = Box(folder(), small_config(), at_stage("prepare", [None] * 40, BASELINE))
    for lives in range(1, 10):
        tick = box.daemon()
        tick.begin()
        found = box.drive(tick, lambda found, lives=lives: found.attempts[-1].number == 2 * lives)
        if found.experiment.state == "halted":
            break
        box.kill(tick)
    assert [one.verdict for one in found.attempts] == ["", AttemptVerdict.INTERRUPTED] * 5 + [""]
    assert "lost 6 attempts in a row" in found.experiment.reason


def test_a_new_daemon_adopts_what_is_still_alive(folder: Folder, undisturbed):
    box = Box(folder())
    tick = box.daemon()
    tick.begin()
    while tick.store.read().experiment.state == "running":
        for _ in range(3):
            tick()
            box.let_pass()
        live = tick.store.read().live_attempts
        box.kill(tick, workers_too=False)
        tick = box.daemon()
        tick.begin()
        alive = {one.token for one in tick.store.read().live_attempts}
        assert alive == {one.token for one in live} & set(box.launcher.jobs)
    assert len(box.launcher.specs) == len(tick.store.read().attempts)
    assert nothing_was_lost(tick.store.read())
    started = [(one.candidate, stage_of(one)) for one in box.launcher.specs]
    assert len(started) == len(set(started))  # nothing ran twice
    assert story(tick.store) == undisturbed


def test_an_adopted_attempt_that_is_lost_later_counts_as_lost(folder: Folder):
    box = Box(folder())
    tick = box.daemon()
    tick()
    (one,) = tick.store.read().live_attempts
    box.kill(tick, workers_too=False)
    tick = box.daemon()
    tick.begin()
    del box.launcher.jobs[one.token]
    tick()
    ended = get(tick.store.read(), one.id)
    assert (ended.state, ended.verdict) == (AttemptState.LOST, "")


def test_an_attempt_that_cannot_be_cleared_keeps_its_slots_also_when_it_stalled(
    folder: Folder, undisturbed
):
    box = Box(folder())
    tick = box.daemon()
    hung = box.drive(tick, two_run).live_attempts[0]
    box.launcher.stuck.add(hung.token)
    for _ in range(60):
        box.let_pass()
        tick()
    found = tick.store.read()
    assert box.passed() - 1000 > 2 * STALL
    assert get(found, hung.id).live
    assert all(found.leases[slot] == hung.id for slot in hung.slots)
    later = [one for one in found.attempts if one.id > hung.id]
    assert later
    assert not any(set(one.slots) & set(hung.slots) for one in later if one.id > hung.id + 1)
    box.launcher.stuck.clear()  # the process dies at last
    del box.launcher.jobs[hung.token]
    box.drive(tick)
    assert get(tick.store.read(), hung.id).state is AttemptState.LOST
    assert story(tick.store) == undisturbed


def test_a_driver_that_does_not_answer_ends_nothing_that_runs(folder: Folder):
    box = Box(folder(), ON_GPUS, slow)
    tick = box.daemon()
    live = box.drive(tick, two_run).live_attempts
    silent = {
        slot: Gpu(slot, fault="the driver did not answer", asked=False) for slot in tick.slots
    }
    tick.health = lambda: dict(silent)
    for _ in range(3):
        tick()
    found = tick.store.read()
    assert {one.kind for one in found.quarantine.values()} == {"unknown"}
    assert [one.id for one in found.live_attempts] == [one.id for one in live]
    tick.health = lambda: {slot: Gpu(slot) for slot in tick.slots}
    tick()
    assert tick.store.read().quarantine == {}
