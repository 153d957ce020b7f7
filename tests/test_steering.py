"""Steering: what people ask is done once, within a turn, or refused in a sentence."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nasd.cli import asking
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Block, FeedForward, Genotype
from nasd.contract.protocol import Heartbeat, Outcome, Spec
from nasd.control import daemon
from nasd.control.tick import Tick
from nasd.launch.launcher import wait_until
from nasd.policy import endings, scheduling
from nasd.record import daemon_lock, requests, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, Phase, State
from nasd.record.state import Snapshot
from nasd.record.store import Store
from nasd.views.status import as_json
from tests.conftest import ROOT, all_succeed, drive, events_of, make_tick, small_config, story
from tests.faults import (
    PATIENT,
    Box,
    Fuse,
    Killed,
    at_stage,
    fragile,
    small_search,
    some_diverge,
)

pytestmark = pytest.mark.usefixtures("no_summaries")

Folder = Callable[[], StateFolder]


def ask(state: StateFolder, action: Any, why: str = "", **arguments: Any) -> str:
    """Files a request, unchecked, as somebody else may just have; its id."""
    request = requests.new(action, why, **arguments)
    requests.file(state.requests, request)
    return request.id


def said(store: Store, request: str) -> tuple[bool, str]:
    found = snapshot.answer(store._db.conn, request)
    assert found is not None, "it is not answered"
    return found


def asked(tick: Tick, action: Any, why: str = "", **arguments: Any) -> tuple[bool, str]:
    """Asks, and takes a turn; the answer."""
    request = ask(tick.state, action, why, **arguments)
    tick()
    assert requests.waiting(tick.state.requests) == []
    return said(tick.store, request)


def refused(tick: Tick, action: Any, **arguments: Any) -> str:
    """The sentence, which is the same for whoever asks at the command line."""
    accepted, text = asked(tick, action, **arguments)
    assert not accepted
    with pytest.raises(NasdError) as caught:
        asking.ask(tick.state.path, action, **arguments)
    assert str(caught.value) == text
    assert requests.waiting(tick.state.requests) == []
    assert "\n" not in text
    return text


def events_named(store: Store, name: str) -> list[str]:
    rows = store._db.execute("SELECT detail FROM event WHERE event = ? ORDER BY id", (name,))
    return [row[0] for row in rows]


def two_run(found: Snapshot) -> bool:
    return len(found.live_attempts) == 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tick = small_search(StateFolder(tmp_path_factory.mktemp("calm") / "state"), some_diverge)
    told = story(tick.store)
    tick.store.close()
    assert told["state"] == "complete"
    return told


@pytest.fixture
def box(folder: Folder) -> Box:
    """Two attempts at a time."""
    return Box(folder())


# -- pause, drain, resume ------------------------------------------------------------------------


def test_paused_attempts_stop_at_a_checkpoint_nothing_starts_and_nobody_is_charged(
    box: Box, undisturbed
):
    tick = box.daemon()
    box.drive(tick, two_run)
    accepted, text = asked(tick, "pause", "the power is cut at noon")
    assert accepted
    assert text == (
        "nothing new starts, 2 attempts stop at their next checkpoints; `nasd resume` goes on"
    )
    found = box.turns(tick, 120)
    assert found.live_attempts == ()
    assert found.attempts[-1].state is AttemptState.PREEMPTED
    assert found.experiment.pause == "pause"
    assert found.experiment.pause_note.startswith(
        f"by {requests.who()}: the power is cut at noon ("
    )
    before = found.attempts
    tick.store.close()
    tick = box.daemon()  # it survives a restart
    tick.begin()
    assert box.turns(tick, 120).attempts == before
    accepted, text = asked(tick, "resume")
    assert accepted
    assert "it was paused by" in text
    found = tick.store.read()
    assert len(found.live_attempts) == 2
    assert found.experiment.pause_note == ""
    box.drive(tick)
    assert story(tick.store) == undisturbed


def test_drained_attempts_run_to_their_end_and_decisions_are_still_made(box: Box, undisturbed):
    tick = box.daemon()

    def at_the_end_of_a_generation(found: Snapshot) -> bool:
        climb = [one for one in found.candidates.values() if not one.final]
        return two_run(found) and len(climb) == 2 and climb[0].stage == climb[1].stage == "evaluate"

    before = box.drive(tick, at_the_end_of_a_generation).generation
    assert before is not None
    accepted, text = asked(tick, "drain")
    assert accepted
    assert text.startswith("nothing new starts, 2 attempts run to their end")
    found = box.turns(tick, 120)
    assert found.live_attempts == ()
    assert {one.state for one in found.attempts[-2:]} == {AttemptState.SUCCEEDED}
    assert found.generation is not None
    assert (found.generation.number, found.generation.phase) == (before.number + 1, Phase.CLIMBING)
    assert asked(tick, "resume")[0]
    box.drive(tick)
    assert story(tick.store) == undisturbed


def test_what_drains_may_be_paused_and_nothing_else_twice(box: Box):
    tick = box.daemon()
    box.drive(tick, two_run)
    assert "neither paused nor draining, so there is nothing to resume" in refused(tick, "resume")
    assert asked(tick, "drain", "a driver")[0]
    assert "it is draining already, by" in refused(tick, "drain")
    assert asked(tick, "pause")[0]
    assert "it is paused already, by" in refused(tick, "pause")
    assert "nothing runs that could be drained: `nasd resume` first" in refused(tick, "drain")
    assert asked(tick, "resume")[0]


def test_a_complete_search_can_be_neither_paused_nor_drained(folder: Folder):
    tick = small_search(folder(), all_succeed)
    assert "complete: nothing runs that could be paused" in refused(tick, "pause")
    assert "complete: nothing runs that could be drained" in refused(tick, "drain")
    assert "nothing to resume; it is complete" in refused(tick, "resume")


def test_a_paused_search_does_not_widen(folder: Folder):
    config = small_config(slots__widen=True)
    tick = make_tick(folder(), config)
    tick()
    assert asked(tick, "drain")[0]
    found = tick.store.read()
    (one,) = found.live_attempts
    tick.clock.now += 3600  # type: ignore[attr-defined]
    beat = Heartbeat(doing="training", step=10, steps=1000, at=0.0, age=3600.0)
    args = (config, tick.slots, 0.0, {one.id: beat})
    assert scheduling.widening(tick.store.read(), *args) is None


# -- the inbox -----------------------------------------------------------------------------------


def test_a_request_stands_in_the_database_with_who_when_and_why(box: Box):
    tick = box.daemon()
    box.drive(tick, two_run)
    request = ask(tick.state, "pause", "new\n fans")
    tick()
    row = tick.store._db.execute("SELECT * FROM request").fetchone()
    assert row[:5] == (request, "pause", "{}", requests.who(), "new fans")
    assert row[6] == tick.clock()
    (detail,) = events_named(tick.store, "request")
    assert detail == f"pause by {requests.who()}: new fans - {said(tick.store, request)[1]}"
    assert not asked(tick, "pause")[0]
    assert " - refused, it is paused already" in events_named(tick.store, "request")[1]


def test_two_requests_at_once_are_answered_in_their_order(box: Box):
    tick = box.daemon()
    box.drive(tick, two_run)
    one, other, third = (ask(tick.state, action) for action in ("pause", "pause", "resume"))
    tick()
    assert [said(tick.store, each)[0] for each in (one, other, third)] == [True, False, True]
    assert tick.store.read().experiment.pause == ""


def test_what_is_asked_while_nasd_is_down_waits_for_it(box: Box):
    tick = box.daemon()
    box.drive(tick, two_run)
    tick.stop()
    tick.store.close()
    told = asking.ask(box.state.path, "pause", "later")
    assert told == f"no daemon serves {box.state.path}: this waits there until `nasd run`"
    asking.ask(box.state.path, "resume")  # what is asked before it decides whether it is possible
    asking.ask(box.state.path, "pause", "after all")
    tick = box.daemon()
    tick.begin()
    tick()
    found = tick.store.read()
    assert found.live_attempts == ()
    assert "after all" in found.experiment.pause_note


def test_a_request_outlives_a_database_that_cannot_be_read_just_now(box: Box, monkeypatch):
    tick = box.daemon()
    tick.begin()
    request = ask(tick.state, "drain")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", _busy)
        with pytest.raises(sqlite3.OperationalError):
            tick()
    tick()
    assert said(tick.store, request)[0]


def _busy(store: Store) -> Any:
    raise sqlite3.OperationalError("database is locked")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b'{"id": "x", "action": "explode", "who": "me", "at": 1.0}', "damaged"),
        (b'{"id": "another", "action": "pause", "who": "me", "at": 1.0}', "of another name"),
        (b'{"id": "x", "action": "pause", "who": "me", "at": NaN}', "damaged"),
        (None, "is no file"),  # a folder
    ],
)
def test_a_damaged_request_is_refused_and_set_aside(box: Box, content: bytes | None, words: str):
    tick = box.daemon()
    tick.begin()
    path = tick.state.requests / "x.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    request = ask(tick.state, "drain")  # the others are none the worse
    tick()
    accepted, text = said(tick.store, "x")
    assert not accepted
    assert words in text
    assert "\n" not in text
    assert said(tick.store, request)[0]
    assert [one.name for one in tick.state.requests.iterdir()] == ["x.damaged"]


def test_a_half_written_request_is_none_yet(box: Box):
    tick = box.daemon()
    tick.begin()
    (tick.state.requests / ".x.json.17.tmp").write_text('{"id"')
    tick()
    assert tick.store._db.execute("SELECT count(*) FROM request").fetchone() == (0,)


def test_requests_that_cannot_be_removed_are_answered_once(box: Box, monkeypatch):
    tick = box.daemon()
    box.drive(tick, two_run)
    ask(tick.state, "pause")

    def keep(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", keep)
    tick()
    tick()
    assert len(events_named(tick.store, "request")) == 1


def test_an_inbox_that_cannot_be_written_is_named(box: Box):
    box.daemon().store.close()
    box.state.requests.write_text("not a folder")
    with pytest.raises(NasdError, match=r"requests cannot be written .*mend that, and ask again"):
        asking.ask(box.state.path, "pause")


def test_without_an_experiment_there_is_nothing_to_steer(tmp_path: Path):
    with pytest.raises(NasdError, match="holds no experiment yet"):
        asking.ask(tmp_path, "pause")
    assert list(tmp_path.iterdir()) == []


def test_who_asks_through_sudo_is_known(monkeypatch):
    monkeypatch.delenv("SUDO_USER", raising=False)
    name = requests.who()
    monkeypatch.setenv("SUDO_USER", "anna")
    assert requests.who() == f"anna as {name}"
    monkeypatch.setattr(os, "getuid", lambda: 987_654_321)
    assert requests.who() == "anna as uid 987654321"


# -- kills ---------------------------------------------------------------------------------------


def killed_at_each_point(
    folder: Folder, prepare: Callable[[Box], Tick], check: Callable[[Tick], None]
) -> int:
    """The turn that answers, killed at every one of its points, and finished by the next daemon.

    prepare: files requests; the daemon is alive. check: what must hold behind the next turn.
    """
    points = 0
    while True:
        box = Box(folder(), PATIENT, some_diverge)
        tick = prepare(box)
        fuse = Fuse(points + 1)
        try:
            with fragile(tick, fuse):
                tick()
        except Killed:
            points += 1
            box.kill(tick)
            tick = box.daemon()
            tick.begin()
            tick()
            check(tick)
            tick.store.close()
        else:
            check(tick)
            tick.store.close()
            return points


def test_killed_while_it_answers_it_answers_each_request_once(folder: Folder):
    def prepare(box: Box) -> Tick:
        tick = box.daemon()
        box.drive(tick, two_run)
        for action in ("pause", "resume", "drain"):
            ask(tick.state, action)
        return tick

    def check(tick: Tick) -> None:
        rows = tick.store._db.execute("SELECT action, accepted FROM request ORDER BY id").fetchall()
        assert rows == [("pause", 1), ("resume", 1), ("drain", 1)]
        assert len(events_named(tick.store, "request")) == 3
        assert tick.store.read().experiment.pause == "drain"
        assert requests.waiting(tick.state.requests) == []

    assert killed_at_each_point(folder, prepare, check) > 12


# -- stop ----------------------------------------------------------------------------------------


def test_asked_to_stop_the_daemon_takes_no_other_turn(box: Box):
    tick = box.daemon()
    box.drive(tick, two_run)
    accepted, text = asked(tick, "stop")
    assert accepted
    assert text.startswith("2 attempts write their checkpoints, and then nasd leaves")
    assert tick.leaves
    assert two_run(tick.store.read())  # the daemon itself ends them, as on SIGTERM


def test_a_request_to_stop_does_not_stop_the_next_daemon(box: Box):
    box.daemon().store.close()
    request = ask(box.state, "stop")  # the daemon has left before it read this
    tick = box.daemon()
    tick.begin()
    tick()
    assert not tick.leaves
    assert said(tick.store, request) == (False, "it was asked before this daemon began: ask again")


def test_killed_while_it_is_told_to_stop_the_next_one_serves(folder: Folder):
    def prepare(box: Box) -> Tick:
        tick = box.daemon()
        box.drive(tick, two_run)
        ask(tick.state, "stop")
        return tick

    def check(tick: Tick) -> None:
        count = "SELECT count(*) FROM request WHERE action = 'stop'"
        assert tick.store._db.execute(count).fetchone() == (1,)
        accepted = tick.store._db.execute("SELECT accepted FROM request").fetchone()[0]
        assert accepted or not tick.leaves
        assert requests.waiting(tick.state.requests) == []

    assert killed_at_each_point(folder, prepare, check) >= 4


def test_where_no_daemon_serves_there_is_nothing_to_stop(box: Box):
    box.daemon().store.close()
    with pytest.raises(NasdError, match=r"no daemon serves .*: there is nothing to stop"):
        asking.ask(box.state.path, "stop")
    assert requests.waiting(box.state.requests) == []


def test_a_daemon_that_leaves_before_it_answers_is_told_of(box: Box, monkeypatch):
    box.daemon().store.close()
    held = iter([True, True, False, True, True, False])
    monkeypatch.setattr(daemon_lock, "held", lambda lock: next(held))
    assert asking.ask(box.state.path, "stop") == "the daemon has just left by itself"
    assert requests.waiting(box.state.requests) == []
    told = asking.ask(box.state.path, "pause")
    assert told == "the daemon has just left: this waits until `nasd run`"
    assert len(requests.waiting(box.state.requests)) == 1


def test_a_daemon_that_does_not_answer_in_time_is_told_of(box: Box, monkeypatch):
    box.daemon().store.close()
    monkeypatch.setattr(daemon_lock, "held", lambda lock: True)
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", -1e9)
    assert "has not answered yet" in asking.ask(box.state.path, "pause")
    assert "in its next turn" in asking.ask(box.state.path, "drain", wait=False)


# -- the budget ----------------------------------------------------------------------------------


def test_a_lower_budget_stops_and_halts_the_search_and_a_higher_one_lets_it_go_on(
    box: Box, undisturbed
):
    tick = box.daemon()
    found = box.drive(tick, two_run)
    used = found.gpu_hours(tick.clock())
    accepted, text = asked(tick, "budget", gpu_hours=used / 2)
    assert accepted
    assert f"and {used:.2f} are used: what runs stops at a checkpoint, and then" in text
    found = box.drive(tick)
    assert found.experiment.state == "halted"
    assert found.experiment.reason.startswith(f"the budget of {used / 2} slot-hours is spent")
    assert {one.state for one in found.attempts[-2:]} == {AttemptState.PREEMPTED}
    tick.store.close()
    asking.ask(box.state.path, "budget", gpu_hours=None)  # nasd is down
    tick = box.daemon()
    daemon._begin(tick)
    found = box.drive(tick)
    assert found.experiment.budget(12.0) is None
    assert story(tick.store) == undisturbed


def test_a_budget_holds_until_the_one_in_the_config_is_changed(folder: Folder):
    config = small_config(experiment__budget_gpu_hours=1000.0)
    tick = make_tick(folder(), config)
    assert asked(tick, "budget", gpu_hours=2000.0) == (
        True,
        "the budget is 2000 slot-hours, of which 0.00 are used",
    )
    assert "the budget is 2000 slot-hours already" in refused(tick, "budget", gpu_hours=2000.0)
    as_json = config.model_dump(mode="json", by_alias=True)
    store = tick.store
    as_json["daemon"]["tick_seconds"] = 1.0
    store.change_config(as_json, "another tick", 0.0)
    assert scheduling.budget(store.read(), config) == 2000.0
    as_json["experiment"]["budget_gpu_hours"] = 3000.0
    store.change_config(as_json, "another budget", 0.0)
    later = small_config(experiment__budget_gpu_hours=3000.0)
    assert scheduling.budget(store.read(), later) == 3000.0


def test_where_there_is_no_budget_none_can_be_lifted(folder: Folder):
    tick = make_tick(folder(), small_config())
    assert "there is no budget already" in refused(tick, "budget", gpu_hours=None)


def test_the_budget_that_is_shown_is_the_one_that_holds(box: Box):
    tick = box.daemon()
    assert asked(tick, "budget", gpu_hours=17.5)[0]
    assert as_json.report(box.state.path)["gpu_hours"]["budget"] == 17.5


@pytest.mark.parametrize("hours", ["0", "-3", "nan", "inf", "many", "1e999"])
def test_a_budget_that_is_no_number_of_hours_is_refused(box: Box, hours: str):
    box.daemon().store.close()
    code, _, told = nasd("budget", "--", hours, state=box.state)
    assert code == 2
    assert told == (
        "nasd: a budget is a number of slot-hours (of GPUs: GPU-hours) above 0, and up to"
        " 1,000,000,000, or none, and not"
        f" {hours}"
    )


# -- retry ---------------------------------------------------------------------------------------


def state_of(found: Snapshot, candidate: int) -> tuple[State, str]:
    one = found.candidates[candidate]
    return one.state, one.stage


def failed(candidate: int, stage: str) -> Callable[[Snapshot], bool]:
    return lambda found: (
        candidate in found.candidates and state_of(found, candidate) == (State.FAILED, stage)
    )


ERROR = Outcome(verdict="error", message="CUDA error")


def test_a_failed_candidate_is_tried_again_at_its_stage_and_its_errors_count_anew(folder: Folder):
    calm = small_search(folder(), all_succeed)
    cutoff = next(d for d in calm.store.read().decisions if d.kind == "cutoff")
    kept, other = cutoff.payload["kept"]
    fails = at_stage("finetune", [ERROR, ERROR, ERROR], candidate=kept)

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        seconds, outcome = fails(spec, before)
        return (900.0 if spec.candidate == other else seconds), outcome

    box = Box(folder(), script=script)
    tick = box.daemon()
    box.drive(tick, failed(kept, "finetune"))
    tick.keep()  # the weights that it would start from are kept for this
    accepted, text = asked(tick, "retry", "a loose cable", candidate=kept)
    assert (accepted, text) == (True, f"candidate {kept} is pending at finetune again")
    box.drive(tick)  # one more error is forgiven, as from the start
    told, expected = story(tick.store), story(calm.store)
    assert told["candidates"][kept][5] is State.SCORED
    assert told["decisions"] == expected["decisions"]
    assert told["members"] == expected["members"]
    events = [event for event, _ in events_of(tick.store, kept)]
    assert events.count("retry") == events.count("fail") == 1


def test_one_that_waits_after_losses_is_tried_again_at_once(folder: Folder, undisturbed):
    box = Box(folder(), script=at_stage("pretrain_0", [None, None, None]))
    tick = box.daemon()

    def lost(times: int) -> Callable[[Snapshot], bool]:
        def found(found: Snapshot) -> bool:
            ends = [a.state for a in endings.attempts_at(found, 1, "pretrain_0")]
            return ends == [AttemptState.LOST] * times

        return found

    found = box.drive(tick, lost(3))
    assert endings.setbacks(found, found.candidates[1])
    accepted, text = asked(tick, "retry", candidate=1)
    assert (accepted, text) == (True, "candidate 1 waits at pretrain_0 for nothing but slots")
    found = tick.store.read()
    assert not endings.setbacks(found, found.candidates[1])
    box.turns(tick, 60)
    assert len(endings.attempts_at(tick.store.read(), 1, "pretrain_0")) == 4


def test_out_of_memory_counts_anew_for_one_that_is_retried(folder: Folder, monkeypatch):
    monkeypatch.setattr(endings, "smallest", lambda stage, world, halvings: halvings > 0)
    full = Outcome(verdict="out_of_memory", message="no room")
    box = Box(folder(), script=at_stage("pretrain_1", [full, full, full], candidate=2))
    tick = box.daemon()
    found = box.drive(tick, failed(2, "pretrain_1"))
    assert endings.halvings(found, PATIENT, found.candidates[2], 2) == 2
    assert asked(tick, "retry", candidate=2)[0]
    found = tick.store.read()
    assert endings.halvings(found, PATIENT, found.candidates[2], 2) == 0
    box.drive(tick)
    assert state_of(tick.store.read(), 2)[0] is State.SCORED


def test_a_failed_baseline_is_tried_again_when_nasd_is_started(folder: Folder):
    box = Box(folder(), script=at_stage("finetune", [Outcome(verdict="diverged")], candidate=0))
    tick = box.daemon()
    assert box.drive(tick).experiment.reason.startswith("the baseline failed at finetune")
    tick.store.close()
    asking.ask(box.state.path, "retry", candidate=0)
    tick = box.daemon()
    daemon._begin(tick)
    assert box.drive(tick).experiment.state == "complete"


def test_who_failed_before_a_cutoff_does_not_come_back_behind_it(folder: Folder):
    script = at_stage("pretrain_0", [Outcome(verdict="diverged")], candidate=5)
    box = Box(folder(), script=script)
    tick = box.daemon()

    def decided(found: Snapshot) -> bool:
        return any(one.kind == "cutoff" for one in found.decisions)

    box.drive(tick, decided)
    assert refused(tick, "retry", candidate=5) == (
        "candidate 5 failed at pretrain_0, and the cutoff after pretrain_0 was decided without it:"
        " a decision is never made again"
    )
    box.drive(tick)
    assert refused(tick, "retry", candidate=5) == (
        "candidate 5 is of generation 1, which is complete and goes on without it"
    )


def test_a_retry_without_weights_to_start_from_is_refused(folder: Folder):
    box = Box(folder(), script=at_stage("finetune", [Outcome(verdict="diverged")]))
    tick = box.daemon()
    box.drive(tick, failed(1, "finetune"))
    shutil.rmtree(box.state.result(1, "pretrain_1"))
    assert refused(tick, "retry", candidate=1) == (
        "candidate 1 would start finetune from the weights of candidate 1 at pretrain_1, which are"
        " gone"
    )


def test_only_who_failed_or_waits_after_losses_is_retried(box: Box):
    tick = box.daemon()
    for state, words in (
        (State.PENDING, "waits for slots at pretrain_0, and has nothing to be retried"),
        (State.WAITING, "is waiting, at pretrain_0: retry is for those that failed"),
        (State.CUT, "is cut, at pretrain_0: retry is for those that failed"),
    ):
        found = box.drive(tick, in_state(state))
        number = next(one.id for one in found.born_in(1) if one.state is state)
        assert refused(tick, "retry", candidate=number) == f"candidate {number} {words}"
    assert "there is no candidate 999" in refused(tick, "retry", candidate=999)


# -- cut -----------------------------------------------------------------------------------------


def in_state(state: State, generation: int = 1) -> Callable[[Snapshot], bool]:
    return lambda found: (
        found.generation is not None
        and found.generation.number == generation
        and any(one.state is state for one in found.born_in(generation))
    )


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING, State.WAITING])
def test_a_candidate_is_cut_whatever_it_does_and_the_search_goes_on(folder: Folder, state: State):
    box = Box(folder(), script=all_succeed)
    tick = box.daemon()
    found = box.drive(tick, in_state(state))
    one = next(c for c in found.born_in(1) if c.state is state)
    live = [a for a in found.live_attempts if a.candidate == one.id]
    accepted, text = asked(tick, "cut", "no use", candidate=one.id)
    assert accepted
    ended = f", and its attempt {live[0].id} is ended" if live else ""
    assert text == f"candidate {one.id} is cut at pretrain_0{ended}"
    found = tick.store.read()
    assert state_of(found, one.id) == (State.CUT, "pretrain_0")
    assert found.candidates[one.id].reason == f"by {requests.who()}: no use"
    for attempt in live:
        assert attempt.token not in box.launcher.jobs
        ended_now = next(a for a in found.attempts if a.id == attempt.id)
        assert (ended_now.state, ended_now.verdict) == (AttemptState.PREEMPTED, "cut")
    found = box.drive(tick)
    assert found.experiment.state == "complete"
    (cutoff,) = [d for d in found.decisions if (d.generation, d.kind) == (1, "cutoff")]
    assert cutoff.payload["reached"] == 4  # it frees no place, and takes none away
    assert cutoff.payload["places"] == 2
    assert one.id not in cutoff.payload["kept"]


def test_a_generation_of_which_all_are_cut_leaves_its_parents(folder: Folder):
    box = Box(folder(), script=all_succeed)
    tick = box.daemon()
    found = box.drive(tick, in_state(State.RUNNING))
    for one in found.born_in(1):
        ask(box.state, "cut", candidate=one.id)
    found = box.drive(tick)
    assert found.experiment.state == "complete"
    assert found.survivors(1) == found.survivors(0)


def test_the_first_generation_may_be_cut_as_a_whole(folder: Folder):
    box = Box(folder(), script=all_succeed)
    tick = box.daemon()
    found = box.drive(tick, in_state(State.RUNNING, 0))
    for one in found.born_in(0):
        ask(box.state, "cut", candidate=one.id)
    found = box.drive(tick)
    assert found.experiment.state == "complete"
    assert {one.parent for one in found.born_in(1)} == {0}


def test_a_process_that_does_not_die_keeps_its_candidate_and_holds_up_nobody_else(box: Box):
    tick = box.daemon()
    found = box.drive(tick, in_state(State.RUNNING, 0))
    attempt = next(one for one in found.live_attempts if one.candidate)
    box.launcher.stuck.add(attempt.token)
    cut = ask(box.state, "cut", candidate=attempt.candidate)
    drain = ask(box.state, "drain")
    tick()
    assert not tick.store.answered(cut)
    assert said(tick.store, drain)[0]
    box.launcher.stuck.clear()
    tick()
    assert said(tick.store, cut)[0]
    assert state_of(tick.store.read(), attempt.candidate)[0] is State.CUT


def test_neither_the_baseline_nor_who_has_come_to_an_end_is_cut(box: Box):
    tick = box.daemon()
    box.drive(tick, in_state(State.RUNNING))
    assert refused(tick, "cut", candidate=0) == (
        "candidate 0 is the baseline, which everything is measured against"
    )
    number = tick.store.read().survivors(0)[0]
    assert refused(tick, "cut", candidate=number) == (
        f"candidate {number} is scored already, at evaluate"
    )


def test_killed_while_it_cuts_nobody_is_half_cut(folder: Folder):
    running = 1

    def prepare(box: Box) -> Tick:
        tick = box.daemon()
        found = box.drive(tick, two_run)
        assert running in [one.candidate for one in found.live_attempts]
        ask(tick.state, "cut", "in the way", candidate=running)
        ask(tick.state, "retry", candidate=running)
        return tick

    def check(tick: Tick) -> None:
        found = tick.store.read()
        assert state_of(found, running) == (State.CUT, "pretrain_0")
        assert not [one for one in found.live_attempts if one.candidate == running]
        assert len(events_named(tick.store, "request")) == 2
        assert len(events_named(tick.store, "cut")) == 1
        assert requests.waiting(tick.state.requests) == []

    assert killed_at_each_point(folder, prepare, check) > 12


def test_a_request_without_its_candidate_is_damaged(box: Box):
    tick = box.daemon()
    tick.begin()
    path = box.state.requests / "x.json"
    path.write_text('{"id": "x", "action": "cut", "who": "me", "at": 1.0}')
    tick()
    assert "x.json is damaged, or no request" in said(tick.store, "x")[1]


# -- inject --------------------------------------------------------------------------------------

NARROW = Genotype((Block(2, (FeedForward("relu", (32,)),)),) * 2)


def bred(generation: int) -> Callable[[Snapshot], bool]:
    return lambda found: any(
        (one.generation, one.kind) == (generation, "breed") for one in found.decisions
    )


@pytest.mark.parametrize("generation", [0, 1])
def test_an_injected_genotype_is_bred_beside_the_others_which_are_what_they_were(
    folder: Folder, undisturbed, generation: int
):
    box = Box(folder())
    tick = box.daemon()
    if generation:
        box.drive(tick, bred(generation - 1))
    accepted, text = asked(tick, "inject", genotype=NARROW.to_json())
    assert (accepted, text) == (True, f"it is bred with generation {generation}: {NARROW}")
    assert refused(tick, "inject", genotype=NARROW.to_json()) == (
        "this genotype waits already for the next generation that is bred"
    )
    found = box.drive(tick, bred(generation))
    (one,) = [c for c in found.candidates.values() if c.hash == NARROW.hash]
    assert one.generation == generation
    others = {c.id: c.hash for c in found.born_in(generation) if c is not one}
    calm = undisturbed["candidates"]
    assert others == {number: calm[number][2] for number in others}
    assert one.id == max(others) + 1
    assert {c.id for c in found.born_in(generation)} == {
        m.candidate for m in found.members if m.role == "offspring" and m.generation == generation
    }
    payload = next(
        d.payload for d in found.decisions if (d.generation, d.kind) == (generation, "breed")
    )
    assert payload["injected"] == [{"hash": NARROW.hash, "parent": one.parent}]
    (injection,) = found.injections
    assert (injection.generation, injection.candidate) == (generation, one.id)
    found = box.drive(tick)
    assert found.experiment.state == "complete"
    assert found.candidates[one.id].final
    assert f"candidate {one.id} has this genotype already" == refused(
        tick, "inject", genotype=NARROW.to_json()
    )


def test_a_genotype_that_was_born_meanwhile_is_not_born_again(folder: Folder, undisturbed):
    box = Box(folder())
    tick = box.daemon()
    box.drive(tick, bred(0))
    twin = next(one[2] for one in undisturbed["candidates"].values() if one[0] == 1)
    calm = small_search(folder(), some_diverge).store.read()
    genotype = next(one.genotype for one in calm.candidates.values() if one.hash == twin)
    assert asked(tick, "inject", genotype=genotype.to_json())[0]
    assert asked(tick, "inject", genotype=NARROW.to_json())[0]
    found = box.drive(tick, bred(1))
    one, other = found.injections
    assert (one.generation, one.candidate) == (1, None)
    assert other.candidate is not None
    assert events_named(tick.store, "injection") == [
        "injection 1 is not born: its genotype had been by then"
    ]
    assert [c.hash for c in found.candidates.values()].count(twin) == 1


@pytest.mark.parametrize(
    ("genotype", "words"),
    [
        ({}, "this is not a genotype"),
        ({"blocks": []}, "it has no blocks"),
        ({"blocks": [{"heads": "2", "ffns": []}]}, "'2' is not a whole number from 1 to 1,000,000"),
        (Genotype(NARROW.blocks * 3).to_json(), "it has 6 blocks, and search_space.blocks allows"),
        (Genotype((Block(3, NARROW.blocks[0].ffns),)).to_json(), "3 heads, which do not divide"),
        (Genotype((Block(1, NARROW.blocks[0].ffns),)).to_json(), "search_space.heads allows"),
        (
            Genotype((Block(2, (FeedForward("relu", (33,)),)),)).to_json(),
            "block 0 has an FFN of size 33, and search_space.sizes allows 32, 64, 96",
        ),
        ({**NARROW.to_json(), "width": 8}, "no 'width' in a genotype: a genotype takes blocks"),
        (
            {"blocks": [one | {"norm": "rms"} for one in NARROW.to_json()["blocks"]]},
            "no 'norm' in a genotype: blocks[0] takes heads, ffns",
        ),
    ],
)
def test_a_genotype_outside_of_the_space_is_refused_naming_what_is(box: Box, genotype, words):
    tick = box.daemon()
    tick()
    assert words in refused(tick, "inject", genotype=genotype)
    # It is none whatever comes of what was asked before it.
    asking.ask(tick.state.path, "drain", wait=False)
    with pytest.raises(NasdError, match=re.escape(words)):
        asking.ask(tick.state.path, "inject", wait=False, genotype=genotype)


def test_without_a_generation_to_come_nothing_is_injected(folder: Folder):
    tick = make_tick(folder(), small_config(experiment__generations=1), all_succeed)
    drive(tick, bred(1))
    assert refused(tick, "inject", genotype=NARROW.to_json()).startswith(
        "no generation is left to be bred, as experiment.generations is 1"
    )
    drive(tick)
    assert "no generation is left" in refused(tick, "inject", genotype=NARROW.to_json())
    tick.store.close()
    more = small_config(experiment__generations=2)  # the config of the next daemon
    asking.ask(tick.state.path, "inject", settings=more, genotype=NARROW.to_json())
    tick = make_tick(tick.state, more, all_succeed)
    daemon._begin(tick)
    found = drive(tick)
    assert found.experiment.state == "complete"
    assert NARROW.hash in [one.hash for one in found.born_in(2)]


def test_killed_while_it_injects_it_is_born_once(folder: Folder):
    def prepare(box: Box) -> Tick:
        tick = box.daemon()
        tick()
        box.let_pass()  # until the baseline is prepared: the next turn breeds
        ask(tick.state, "inject", genotype=NARROW.to_json())
        return tick

    def check(tick: Tick) -> None:
        for _ in range(20):
            if bred(0)(tick.store.read()):
                break
            tick.clock.passed.now += 30  # type: ignore[attr-defined]
            tick()
        found = tick.store.read()
        (one,) = found.injections
        born = [c.id for c in found.born_in(0)]
        assert (one.generation, one.candidate, len(born)) == (0, born[-1], 4)

    assert killed_at_each_point(folder, prepare, check) > 8


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b'{"blocks": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit (4300 digits)"),
        (b"[]", "holds no genotype"),
    ],
)
def test_a_file_that_is_no_genotype_is_named(box: Box, content: bytes | None, words: str):
    box.daemon().store.close()
    path = box.state.path / "mine.json"
    if content is not None:
        path.write_bytes(content)
    code, _, told = nasd("inject", str(path), state=box.state)
    assert code == 2
    assert told.startswith(f"nasd: {path} {words}")
    assert len(told) < 250


def test_a_byte_order_mark_before_a_genotype_is_no_part_of_it(box: Box):
    box.daemon().store.close()
    path = box.state.path / "mine.json"
    path.write_text('{"blocks": []}', encoding="utf-8-sig")
    _, _, told = nasd("inject", str(path), state=box.state)
    assert told.endswith("this is not a genotype: it has no blocks")


# -- a real daemon -------------------------------------------------------------------------------

SERVE = """
import sys, time
from pathlib import Path
from nasd.control import daemon
from nasd.record import daemon_lock
from nasd.record.folders import StateFolder
from tests.conftest import all_succeed, make_tick, small_config

state = StateFolder(Path(sys.argv[1]))
state.path.mkdir(exist_ok=True)
with daemon_lock.hold(state.lock):
    tick = make_tick(
        state,
        small_config(daemon__tick_seconds=0.1),
        lambda spec, before: (1e9 if spec.attempt > 3 else 0.0, all_succeed(spec, before)[1]),
        time.time,
    )
    sys.exit(3 if daemon._serve(tick) else 0)
"""


def nasd(*arguments: str, state: StateFolder) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "nasd", arguments[0], "--state", str(state.path), *arguments[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def read(state: StateFolder) -> Snapshot:
    with snapshot.opened(state.path) as connection:
        return snapshot.read(connection)


def test_a_daemon_is_paused_resumed_and_stopped_from_the_command_line(state: StateFolder):
    command = [sys.executable, "-c", SERVE, str(state.path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as serving:
        try:
            assert wait_until(lambda: state.database.exists() and read_quietly(state, live=2), 60)
            code, told, _ = nasd("pause", "--why", "lunch", state=state)
            assert (code, told[:19]) == (0, "nothing new starts,")
            assert wait_until(lambda: not read(state).live_attempts, 60)
            code, _, told = nasd("pause", state=state)
            assert code == 2
            assert told.startswith(f"nasd: it is paused already, by {requests.who()}: lunch (")
            code, told, _ = nasd("resume", state=state)
            assert (code, told[-20:]) == (0, "; the search goes on")
            assert wait_until(lambda: len(read(state).live_attempts) == 2, 60)
            code, told, _ = nasd("stop", "--why", "done", state=state)
            assert (code, told[:31]) == (0, "2 attempts write their checkpoi")
            assert serving.wait(60) == 0
        finally:
            serving.kill()
    found = read(state)
    assert found.live_attempts == ()
    assert found.experiment.state == "running"
    code, _, told = nasd("cut", "baseline", state=state)
    assert code == 2 and told.endswith("is the baseline, which everything is measured against")
    code, _, told = nasd("retry", "nobody", state=state)
    assert code == 2 and told.startswith("nasd: there is no candidate 'nobody': give its number")
    code, _, told = nasd("stop", state=state)
    assert code == 2
    assert told == f"nasd: no daemon serves {state.path}: there is nothing to stop"


def read_quietly(state: StateFolder, live: int) -> bool:
    try:
        return len(read(state).live_attempts) == live
    except NasdError:  # it is about to be made
        return False
