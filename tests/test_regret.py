"""`nasd report --regret`: the cut candidates of the last generation trained to the end, and what
that shows of the cutoff."""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.control import daemon, retention
from nasd.control.tick import Tick
from nasd.launch import launchers
from nasd.policy import decisions
from nasd.policy.steering import drawn
from nasd.record import daemon_lock
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Phase, State
from nasd.record.state import Snapshot
from nasd.views.dossier import compile_dossier
from nasd.views.report import words
from nasd.views.report.findings import Findings
from nasd.views.report.page import _survival, render
from nasd.views.report.regret import offer, price, stopped
from nasd.views.report.statistics import share
from nasd.views.report.write import notes, read, write
from tests.conftest import (
    FakeLauncher,
    all_succeed,
    drive,
    make_tick,
    small_config,
    small_dict,
    story,
    to_toml,
)
from tests.faults import PATIENT, Box, small_search, weights_on_disk
from tests.test_steering import ask, asked, events_named, killed_at_each_point, refused

pytestmark = pytest.mark.usefixtures("no_summaries")

Folder = Callable[[], StateFolder]
RUNNER = CliRunner()


def finished(state: StateFolder, config: Config = PATIENT) -> tuple[Tick, list[int]]:
    """A complete search, and whom the last cutoffs stopped."""
    tick = small_search(state, all_succeed, config)
    found = tick.store.read()
    assert found.generation is not None
    return tick, [one.id for one in found.stopped_in(found.generation.number)]


def without(told: dict[str, Any], *candidates: int) -> dict[str, Any]:
    """A story but for what becomes of these candidates."""
    left = {**told}
    for name in ("candidates", "events"):
        left[name] = {one: what for one, what in told[name].items() if one not in candidates}
    left["results"] = {
        key: what for key, what in told["results"].items() if key[0] not in candidates
    }
    return left


@pytest.mark.parametrize(
    "config",
    [
        PATIENT,
        # A second cutoff behind the first, which holds nobody up any more.
        small_config(stages__pretrain_1__keep=0.5, population__lambda=6),
    ],
)
def test_cut_candidates_climb_to_the_end_and_change_nothing_else(folder: Folder, config: Config):
    tick, cut = finished(folder(), config)
    before = story(tick.store)
    accepted, text = asked(tick, "regret", "for the paper")
    assert accepted
    names = ", ".join(str(one) for one in cut)
    assert text == f"trained on behind the selection: candidates {names}"
    found = tick.store.read()
    assert (found.experiment.state, found.experiment.completed_at) == ("running", None)
    assert found.live_attempts
    found = drive(tick)
    assert found.experiment.state == "complete"
    assert {found.candidates[one].state for one in cut} == {State.SCORED}
    assert without(story(tick.store), *cut) == without(before, *cut)
    assert all(m.survives is None for m in found.members if m.candidate in cut)
    assert len(events_named(tick.store, "revive")) == len(cut)
    assert "nobody whom a cutoff has stopped" in refused(tick, "regret")


def test_their_weights_stand_until_then(folder: Folder):
    tick, cut = finished(folder())
    tick.keep()
    assert {(one, "pretrain_0") for one in cut} <= weights_on_disk(tick.state)
    assert asked(tick, "regret")[0]
    tick.keep()
    assert {(one, "pretrain_0") for one in cut} <= weights_on_disk(tick.state)
    found = drive(tick)
    tick.keep()
    kept = retention.needed(found, tick.config, tick.store.scored())
    assert {one for one in weights_on_disk(tick.state) if one[1] != "evaluate"} <= kept


def test_whose_weights_are_gone_stays_cut(folder: Folder):
    import shutil

    tick, (one, *others) = finished(folder())
    shutil.rmtree(tick.state.result(one, "pretrain_0"))
    accepted, text = asked(tick, "regret")
    assert accepted
    assert text.endswith(f"; the weights of candidate {one} are gone")
    found = drive(tick)
    assert found.candidates[one].state is State.CUT
    assert {found.candidates[each].state for each in others} == {State.SCORED}
    assert refused(tick, "regret").startswith("the weights of all whom the cutoff stopped are")


def test_it_is_refused_before_the_last_generation_is_complete(folder: Folder):
    tick = make_tick(folder(), PATIENT)
    tick()
    assert "of generations 0 to 2, none has begun" in refused(tick, "regret")

    def second(found: Snapshot) -> bool:
        return found.generation is not None and found.generation.number == 2

    drive(tick, second)
    assert "of generations 0 to 2, 2 is climbing" in refused(tick, "regret")


def test_it_is_refused_where_nobody_was_cut_or_the_budget_is_spent(folder: Folder):
    tick, _ = finished(folder(), small_config(experiment__generations=0))
    assert "in generation 0 there is nobody whom a cutoff has stopped" in refused(tick, "regret")
    tick, _ = finished(folder())
    assert asked(tick, "budget", gpu_hours=1e-3)[0]
    assert refused(tick, "regret") == "the budget of 0.001 slot-hours is spent"


def test_who_is_cut_by_a_person_is_none_of_them(folder: Folder):
    box = Box(folder(), script=all_succeed)
    tick = box.daemon()

    def last(found: Snapshot) -> bool:
        return found.generation is not None and bool(found.born_in(2))

    found = box.drive(tick, last)
    mine = found.born_in(2)[0].id
    assert asked(tick, "cut", candidate=mine)[0]
    found = box.drive(tick)
    assert mine not in [one.id for one in stopped(found)]
    assert asked(tick, "regret")[0]
    found = box.drive(tick)
    assert found.candidates[mine].state is State.CUT


def test_one_cut_by_request_is_told_as_such_and_its_stage_is_not_done(folder: Folder):
    tick = make_tick(folder(), PATIENT)
    found = drive(tick, lambda found: any(a.candidate for a in found.live_attempts))
    mine = next(a.candidate for a in found.live_attempts if a.candidate)
    assert asked(tick, "cut", "too slow", candidate=mine)[0]
    told = compile_dossier(tick.state.path, str(mine), tick.clock())
    (stage,) = [row for row in told.stages if row.stage == told.stage]
    assert stage.state == "here"
    cut = told.decisions[-1]
    assert (cut.kind, cut.stage) == ("cut", "")
    assert cut.text.startswith(f"by request, at {told.stage}: by ")
    drive(tick)
    facts = read(tick.state.path, tick.clock())
    assert facts.by_id[mine].cut
    (asks,) = facts.asked
    assert (asks.action, asks.why) == ("cut", "too slow")
    page = render(facts, [], {})
    assert asks.answer in page and "It belongs to the story" in page
    for row in facts.generations:
        assert row.born == row.scored + row.cut + row.failed


def test_a_generation_more_waits_until_they_are_through(folder: Folder):
    tick, cut = finished(folder())
    assert asked(tick, "regret")[0]
    tick.store.close()
    more = small_config(experiment__generations=3, daemon__infrastructure_retries=10_000)
    tick = make_tick(tick.state, more)
    daemon._begin(tick)

    def opened(found: Snapshot) -> bool:
        return found.generation is not None and found.generation.number == 3

    found = drive(tick, opened)
    assert all(found.candidates[one].final for one in cut)
    found = drive(tick)
    assert found.experiment.state == "complete"
    assert not set(cut) & {m.candidate for m in found.members if m.generation == 3}


def test_killed_anywhere_while_they_come_back_each_comes_back_once(folder: Folder):
    cut: list[int] = []

    def prepare(box: Box) -> Tick:
        box.launcher.script = all_succeed
        tick = box.daemon()
        box.drive(tick)
        found = tick.store.read()
        cut[:] = [one.id for one in found.stopped_in(2)]
        assert len(cut) == 2
        ask(tick.state, "regret")
        return tick

    def check(tick: Tick) -> None:
        assert len(events_named(tick.store, "revive")) == 2
        while tick.store.read().experiment.state == "running":
            tick.clock.passed.now += 30  # type: ignore[attr-defined]
            tick()
        found = tick.store.read()
        assert {found.candidates[one].state for one in cut} == {State.SCORED}

    assert killed_at_each_point(folder, prepare, check) > 20


# -- the price, and what is said ------------------------------------------------------------------


def test_the_price_is_told_and_has_to_fit_the_budget(folder: Folder):
    tick, cut = finished(folder())
    found, now = tick.store.read(), tick.clock()
    asks = price(found, tick.config, stopped(found))
    told = offer(found, tick.config, 4, "GPU-hours", now)
    assert told.startswith(f"To train {len(cut)} cut candidates of generation 2 to the end takes")
    assert "on 4 slots" in told
    # Two at a time on 2 slots each, and then evaluated on one.
    assert asks.longest < asks.gpu_hours
    assert asks.hours(1) == asks.gpu_hours
    assert asks.hours(1000) == asks.longest
    tick.store.set_budget(found.gpu_hours(now) + 0.5 * asks.gpu_hours)
    with pytest.raises(NasdError, match=r"left: raise it with `nasd budget`"):
        offer(tick.store.read(), tick.config, 4, "GPU-hours", now)


def test_the_report_says_what_the_cutoff_missed(folder: Folder):
    tick, cut = finished(folder(), small_config(population__lambda=8))
    assert words.missed(Findings(tick.store.read(), 0.0)) == []
    assert asked(tick, "regret")[0]
    found = drive(tick)
    facts = Findings(found, tick.clock())
    (told,) = words.missed(facts)
    assert told in words.answer(facts)
    assert told.startswith("The cutoff after pretrain_0 in generation 2 stopped 4 candidates")
    assert "The rank correlation of loss at the cutoff and quality, among the 8, is" in told
    assert sorted(row.candidate for row in facts.missed) == cut
    would = [row.candidate for row in facts.missed if row.would_survive]
    assert (f"selection: {len(would)} (cand" if would else "selection: none;") in told
    for row in facts.missed:
        spent = [
            len(a.slots) * (a.ended_at - a.started_at)
            for a in found.attempts
            if a.candidate == row.candidate and a.stage != "pretrain_0" and a.ended_at is not None
        ]
        assert row.gpu_hours == pytest.approx(sum(spent) / 3600)
        assert row.front == facts.by_id[row.candidate].front
        dossier = compile_dossier(tick.state.path, str(row.candidate), tick.clock())
        assert "trained on after the search" in dossier.decisions[-1].text
    for generation in facts.generations:
        assert generation.born == generation.scored + generation.cut + generation.failed
    page = write(facts, tick.state.path / "report").read_text()
    assert "What the cutoff missed" in page
    assert "a cutoff that is always right" in page
    assert all(_survival(row) in page for row in facts.missed)


def test_the_report_offers_what_regret_would_accept_and_nothing_else(folder: Folder):
    box = Box(folder(), script=all_succeed)
    tick = box.daemon()
    box.drive(tick, lambda found: bool(found.stopped_in(1)))
    assert notes(Findings(tick.store.read(), tick.clock())) == {}
    box.drive(tick)
    (told,) = notes(Findings(tick.store.read(), tick.clock())).values()
    assert "of generation 2 to the end with `nasd report --regret` would take" in told
    assert asked(tick, "regret")[0]
    box.drive(tick)
    assert notes(Findings(tick.store.read(), tick.clock())) == {}


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """The config of a search that is complete."""
    path = tmp_path / "config.toml"
    path.write_text(to_toml(small_dict(daemon__tick_seconds=0.01)))
    tick, _ = finished(StateFolder(tmp_path / "state"), small_config(daemon__tick_seconds=0.01))
    tick.store.close()
    return path


@pytest.mark.usefixtures("_signals")
def test_without_a_daemon_the_command_is_one_and_then_reports(complete: Path, monkeypatch):
    def launcher(config: Config, state: Path) -> FakeLauncher:
        return FakeLauncher(time.time, lambda spec, before: (0.0, all_succeed(spec, before)[1]))  # type: ignore[arg-type]

    local = replace(launchers.LAUNCHERS["local"], open=launcher)
    monkeypatch.setitem(launchers.LAUNCHERS, "local", local)
    done = RUNNER.invoke(app, ["report", "--regret", "--yes", "--config", str(complete)])
    assert done.exception is None, done.output
    assert "To train 2 cut candidates of generation 2 to the end takes about" in done.output
    assert "this waits there until `nasd run`" not in done.output
    assert "The cutoff after pretrain_0 in generation 2 stopped 2 candidates" in done.output
    assert (complete.parent / "state" / "reports" / "small" / "index.html").exists()
    found = read(complete.parent / "state").snapshot
    assert found.experiment.state == "complete"
    assert found.generation is not None
    assert found.generation.phase is Phase.COMPLETE


def test_nobody_pays_unasked(complete: Path):
    arguments = ["report", "--regret", "--config", str(complete)]
    done = RUNNER.invoke(app, arguments)
    assert isinstance(done.exception, NasdError)
    assert "say so with --yes" in str(done.exception)
    state = StateFolder(complete.parent / "state")
    assert not list(state.requests.glob("*"))
    # Where a daemon will not do it, the price is not asked for either.
    complete.write_text(to_toml(small_dict(experiment__generations=5)))
    done = RUNNER.invoke(app, arguments)
    assert "of generations 0 to 5, 2 is complete" in str(done.exception)
    done = RUNNER.invoke(app, ["report", "--regret", "--yes", "--state", str(state.path)])
    assert "name the experiment by its config" in str(done.exception)


def test_where_a_daemon_serves_it_is_asked(complete: Path, monkeypatch):
    monkeypatch.setattr(daemon_lock, "held", lambda lock: True)
    monkeypatch.setattr("nasd.cli.asking.PATIENCE_SECONDS", -1e9)
    done = RUNNER.invoke(app, ["report", "--regret", "--yes", "--config", str(complete)])
    assert done.exception is None, done.output
    assert "once they are through, `nasd report` shows" in done.output
    state = StateFolder(complete.parent / "state")
    tick = make_tick(state, PATIENT)
    tick()
    assert tick.store.read().experiment.state == "running"
    assert decisions.next_decision(tick.store.read(), PATIENT) is None


# -- a few of them -------------------------------------------------------------------------------


def test_a_few_of_the_cut_are_trained_on_and_speak_for_the_others(folder: Folder):
    tick, cut = finished(folder(), small_config(population__lambda=8))
    found = tick.store.read()
    whole = offer(found, tick.config, 4, "GPU-hours", tick.clock())
    few = offer(found, tick.config, 4, "GPU-hours", tick.clock(), sample=2)
    assert whole.startswith("To train 4 cut") and few.startswith("To train 2 cut")
    accepted, text = asked(tick, "regret", sample=2)
    assert accepted and text.endswith(", 2 of the 4 who were cut")
    found = drive(tick)
    scored = [one for one in cut if found.candidates[one].state is State.SCORED]
    assert len(scored) == 2
    assert {found.candidates[one].state for one in {*cut} - {*scored}} == {State.CUT}
    (told,) = words.missed(Findings(found, tick.clock()))
    would = sum(row.would_survive for row in Findings(found, tick.clock()).missed)
    told_share = share(would, 2)
    assert told_share is not None
    low, high = (f"{100 * one:.0f}" for one in (told_share.low, told_share.high))
    assert "They are 2 of the 4 whom it cut" in told
    assert f"of all these {low} to {high} % would have survived" in told
    # The others can be asked for later, and then nothing is left to be guessed.
    assert asked(tick, "regret", sample=9)[0]
    (told,) = words.missed(Findings(drive(tick), tick.clock()))
    assert "They are" not in told


def test_who_is_drawn_follows_from_the_seed_and_nobody_is_left_out_by_rule(folder: Folder):
    tick, cut = finished(folder(), small_config(population__lambda=8))
    found = tick.store.read()
    ids = {one.id for one in drawn(found, stopped(found), 2)}
    assert ids == {one.id for one in drawn(found, stopped(found), 2)} and len(ids) == 2
    ever = set()
    for seed in range(40):
        other = replace(found, experiment=replace(found.experiment, seed=seed))
        ever |= {one.id for one in drawn(other, stopped(other), 1)}
    assert ever == {*cut}


def test_a_sample_without_regret_is_refused(complete: Path):
    done = RUNNER.invoke(app, ["report", "--sample", "3", "--config", str(complete)])
    assert isinstance(done.exception, NasdError)
    assert str(done.exception).startswith("--sample says for how many")
