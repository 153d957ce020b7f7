"""Everything at once: a machine of rules drives daemons through searches in which whatever can go
wrong does, in any order, while people steer them. After each rule what must always hold is looked
at, and at the end the search has told the same story as an undisturbed one; where people took
candidates out or put some in, as an undisturbed one in which the same was asked."""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nasd.contract.config import PREPARE, Config
from nasd.contract.genotype import Block, FeedForward, Genotype
from nasd.contract.protocol import Outcome, Spec, read
from nasd.contract.slots import devices
from nasd.control import retention
from nasd.control.daemon import _begin
from nasd.control.machine import GB
from nasd.control.tick import Tick
from nasd.policy import decisions, ladder, scheduling
from nasd.record import requests
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, Event, Phase, State
from nasd.record.state import Breed, Candidate, Snapshot
from nasd.record.store import Store
from nasd.search.pareto import ranks
from tests.conftest import BASELINE, decisions_of, small_config, story, without_summaries
from tests.faults import (
    GPUS,
    Box,
    Fuse,
    Killed,
    fragile,
    restore,
    some_diverge,
    stage_of,
    weights_on_disk,
)

ALONE = {f"stages__{name}__slots": 1 for name in ("pretrain_0", "pretrain_1", "finetune")}
CONFIGS = {
    "small": {"experiment__generations": 4},
    "one parent": {
        "population__mu": 1,
        "population__lambda": 3,
        "population__tournament": 1,
        "experiment__generations": 6,
    },
    "two cutoffs": {
        "promotion__rule": "hyperband",
        "stages__pretrain_1__keep": 0.5,
        "population__lambda": 5,
        "experiment__generations": 4,
    },
    "rungs": {
        "stages__pretrain_0__rungs": [{"at": 0.5, "keep": 0.75}],
        "stages__finetune__rungs": [{"at": 0.25, "keep": 0.6}, {"at": 0.6, "keep": 0.5}],
        "population__lambda": 5,
        "experiment__generations": 3,
    },
    "asynchronous": {
        "promotion__rule": "asha",
        "stages__pretrain_0__keep": 0.6,
        "stages__finetune__rungs": [{"at": 0.25, "keep": 0.5}, {"at": 0.6, "keep": 0.5}],
        "population__lambda": 7,
        "experiment__generations": 3,
    },
    "overlapping": {
        **ALONE,
        "population__overlap": True,
        "population__lambda": 6,
        "stages__pretrain_0__keep": 0.75,
        "experiment__generations": 3,
    },
    "overlapping and asynchronous": {
        **ALONE,
        "population__overlap": True,
        "promotion__rule": "asha",
        "stages__pretrain_0__keep": 0.6,
        "stages__finetune__rungs": [{"at": 0.25, "keep": 0.5}],
        "population__lambda": 7,
        "experiment__generations": 3,
    },
    "shared": {
        "slots__devices": list(GPUS[:2]),
        "slots__share": 3,
        "experiment__generations": 3,
    },
}
OVERLAPPING = frozenset({"overlapping", "overlapping and asynchronous"})
TURNS = 20  # of a life that no fuse ends
CLIMBING = (State.PENDING, State.RUNNING, State.WAITING)
MEDDLED = 3  # at most so often candidates are taken out or put in
SMALL_FFN = FeedForward("relu", (32,))
MADE = [
    Genotype((Block(2, (SMALL_FFN,)),)),
    Genotype((Block(4, (SMALL_FFN, SMALL_FFN)),) * 5),
    Genotype((*BASELINE.blocks, Block(8, (SMALL_FFN,)))),
]


def config_of(name: str) -> Config:
    return small_config(
        **{
            "slots__devices": list(GPUS),
            "daemon__infrastructure_retries": 10_000,
            "daemon__stop_grace_seconds": 0.001,  # what hangs does not answer anyway
            **CONFIGS[name],
        }
    )


@dataclass(frozen=True)
class Meddling:
    """What people had done to a search, as its database tells it.

    cuts: (candidate, stage, None or, where it waited there, how many had been promoted from there
    by then, reason). injections: (genotype, generation).
    """

    cuts: tuple[tuple[int, str, int | None, str], ...] = ()
    injections: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, store: Store, config: Config) -> "Meddling":
        after = {one.name: then.name for one, then in pairwise(config.ladder("candidates"))}
        promoted = (
            "SELECT count(*) FROM event JOIN candidate AS other ON other.id = event.candidate"
            " WHERE event.event = 'keep' AND event.stage = ? AND event.id < ?"
            " AND other.generation = (SELECT generation FROM candidate WHERE id = ?)"
        )
        cuts = store._db.execute(
            "SELECT id, candidate, stage, source = 'waiting', detail FROM event"
            " WHERE event = 'cut' AND detail LIKE 'by %' ORDER BY candidate"
        ).fetchall()
        injections = store._db.execute(
            "SELECT genotype, generation FROM injection WHERE generation IS NOT NULL ORDER BY id"
        )
        return cls(
            tuple(
                (
                    who,
                    stage,
                    store._value(promoted, after[stage], event, who) if waited else None,
                    reason,
                )
                for event, who, stage, waited, reason in cuts
            ),
            tuple(injections),
        )


class MeddledTick(Tick):
    """A daemon in whose turns the same is done, at the same place in its candidates' lives."""

    meddling = Meddling()

    def decide(self) -> None:
        self.inject()
        self.cut()
        super().decide()

    def _apply(self, decision: decisions.Decision) -> None:
        super()._apply(decision)
        self.cut()

    def start(self) -> None:
        super().start()
        self.inject()
        self.cut()

    def cut(self) -> None:
        found = self.store.read()
        for number, stage, promoted, reason in self.meddling.cuts:
            one = found.candidates.get(number)
            if one is None or one.stage != stage or one.final:
                continue
            if (promoted is not None) != (one.state is State.WAITING):
                continue
            if promoted and len(decisions._went_on(found, one.generation, stage)) < promoted:
                continue
            live = [each for each in found.live_attempts if each.candidate == number]
            for attempt in live:
                self._end_by_request(attempt, reason, nullcontext())
            if not live:
                self.store.advance(number, Event.CUT, self.clock(), detail=reason)

    def inject(self) -> None:
        found = self.store.read()
        newest = -1 if found.generation is None else found.generation.number
        known = {one.hash for one in found.injections}
        for text, generation in self.meddling.injections:
            genotype = Genotype.from_json(json.loads(text))
            if generation == newest + 1 and genotype.hash not in known:
                request = requests.new("inject", genotype=genotype.to_json())
                with self.store.answer(request, True, "", self.clock()):
                    self.store.inject(genotype, request.id)


@lru_cache(maxsize=64)
def undisturbed(name: str, meddling: Meddling) -> dict[str, Any]:
    home = Path(tempfile.mkdtemp())
    try:
        box = Box(StateFolder(home / "state"), config_of(name), some_diverge)
        tick = box.daemon(MeddledTick)
        tick.meddling = meddling
        box.drive(tick)
        told = story(tick.store)
        tick.store.close()
    finally:
        shutil.rmtree(home)
    assert told["state"] == "complete"
    return told


class CheckedTick(Tick):
    """What is decided from what is in play follows from the whole search just the same."""

    def _apply(self, decision: decisions.Decision) -> None:
        whole = self.store.read()
        assert decision == decisions.next_decision(whole, self.config, self._idle())
        if isinstance(decision, Breed):
            assert self.store.in_play().taken == whole.taken
        super()._apply(decision)


def descended_from(found: Snapshot, config: Config, candidate: Candidate) -> tuple[int, str]:
    """The (candidate, stage) that a child of it would start from, were it born just now."""
    steps = ladder.steps_of(found, config, candidate)
    tasks = {stage.name: stage.task for stage in config.parts} | {PREPARE: "mlm"}
    return candidate.id, [stage for stage in steps if tasks[stage] == "mlm"][-1]


def must_stand(found: Snapshot, config: Config) -> set[tuple[int, str]]:
    """The weights that somebody will start from, and the models that a person wants, told without
    nasd.control.retention."""
    wanted = set()
    newest = -1 if found.generation is None else found.generation.number
    climbs = found.generation is not None and found.generation.phase is Phase.CLIMBING
    for one in found.candidates.values():
        again = one.state is State.FAILED and one.generation == newest and climbs
        if one.state in (State.PENDING, State.RUNNING) or again:
            origin, _ = ladder.weights_of(found, config, one)
            wanted |= {origin} - {None}
        done = [stage for number, stage in found.results if number == one.id]
        if one.generation == newest and not one.final:
            origin = descended_from(found, config, one)  # it may become a parent
            wanted |= {origin} if origin[1] in done else set()
        if one.state is State.WAITING:
            wanted.add((one.id, one.stage))
    for member in found.members:
        if member.generation == newest and member.survives is not False:
            one = found.candidates[member.candidate]
            if one.state is State.SCORED:
                wanted |= {descended_from(found, config, one), (one.id, "finetune")}
    scored = [one.id for one in found.candidates.values() if one.state is State.SCORED]
    best = ranks(decisions.points(found, scored))
    wanted |= {(one, "finetune") for one, rank in zip(scored, best, strict=True) if rank == 0}
    return wanted


def fault(**strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule behind which a few turns follow, or none, so that faults meet."""

    def decorate(function: Callable[..., None]) -> Any:
        def happens(self: "Search", then: int, **drawn: Any) -> None:
            function(self, **drawn)
            self.run(then)

        happens.__name__ = function.__name__
        return rule(then=st.sampled_from([1, 0, 2]), **strategies)(happens)

    return decorate


class Search(RuleBasedStateMachine):
    configs = frozenset(CONFIGS) - OVERLAPPING
    script = staticmethod(some_diverge)

    @initialize(
        drawn=st.data(),
        checkpoints=st.booleans(),
        turns=st.sampled_from([12, 0, 4, 24, 48]),
    )
    def begin(self, drawn: st.DataObject, checkpoints: bool, turns: int) -> None:
        name = drawn.draw(st.sampled_from(sorted(self.configs)))
        self.summaries = without_summaries()
        self.summaries.__enter__()
        self.name = name
        self.meddled = 0
        self.config = config_of(name)
        self.home = Path(tempfile.mkdtemp())
        self.box = Box(StateFolder(self.home / "state"), self.config, self.script, checkpoints)
        self.box.health_age = 20.0
        self.struck: set[tuple[int, str, str]] = set()  # verdicts that may come once at a stage
        self.tick = self.box.daemon(CheckedTick)
        self.tick.begin()
        self.run(turns)

    # -- the daemon ----------------------------------------------------------------------------

    @property
    def expected(self) -> dict[str, Any]:
        return undisturbed(self.name, Meddling.of(self.tick.store, self.config))

    @property
    def found(self) -> Snapshot:
        return self.tick.store.read()

    def one_turn(self) -> None:
        self.tick()
        self.box.let_pass()

    @rule(turns=st.integers(1, 3))
    def turns(self, turns: int) -> None:
        self.run(turns)

    def run(self, turns: int) -> None:
        for _ in range(turns):
            self.one_turn()

    @rule(seconds=st.sampled_from([0.0, 1.0, 31.0, 130.0, 700.0, 30_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.box.let_pass(seconds)
        self.tick()

    @fault(
        lives=st.lists(st.integers(1, 90), min_size=1, max_size=3),
        orphans=st.booleans(),
        while_it=st.sampled_from(["runs", "stops", "keeps"]),
    )
    def crash(self, lives: list[int], orphans: bool, while_it: str) -> None:
        """The daemon is killed at one of its next points, and so is who comes after it."""
        for points in lives:
            with suppress(Killed), fragile(self.tick, Fuse(points)):
                if while_it == "stops":
                    self.tick.stop()
                elif while_it == "keeps":
                    self.tick.keep()
                self.run(TURNS)
            self.box.kill(self.tick, workers_too=not orphans)
            self.holds_for_the_dead()
            self.tick = self.box.daemon(CheckedTick)
            with suppress(Killed), fragile(self.tick, Fuse(points // 2)):
                self.tick.begin()
        self.come_back()

    def come_back(self) -> None:
        self.tick.store.close()
        self.tick = self.box.daemon(CheckedTick)
        self.tick.begin()

    def holds_for_the_dead(self) -> None:
        """What the database says between two daemons."""
        self.tick = self.box.daemon(CheckedTick)
        self.everything_holds()
        self.tick.store.close()

    @fault(gaps=st.lists(st.integers(1, 60), min_size=1, max_size=6), database=st.booleans())
    def nothing_can_be_written(self, gaps: list[int], database: bool) -> None:
        """Errors, not kills: the same daemon goes on."""
        full = sqlite3.OperationalError("database or disk is full")
        error = full if database else OSError(28, "No space left on device")
        with fragile(self.tick, Fuse(*gaps, error=error)):
            for _ in range(10):
                with suppress(OSError, sqlite3.OperationalError):
                    self.tick()
                self.box.let_pass()

    @fault()
    def terminate(self) -> None:
        """As on SIGTERM, and nasd is started again."""
        self.tick.stop()
        assert set(self.box.launcher.jobs) <= self.box.launcher.stuck
        self.come_back()

    @fault()
    def keep(self) -> None:
        self.tick.keep()
        self.nothing_stands_that_nobody_needs()

    def nothing_stands_that_nobody_needs(self) -> None:
        needed = retention.needed(self.found, self.config, self.tick.store.scored())
        standing = {one for one in weights_on_disk(self.box.state) if one[1] != "evaluate"}
        assert standing <= needed
        assert not list(self.box.state.path.rglob("*.gone"))
        assert not list(self.box.state.backups.glob(".*"))

    @fault(killed=st.booleans())
    def take_back(self, killed: bool) -> None:
        """nasd is stopped, or killed; a person restores the newest backup, and starts it again."""
        if not killed:
            self.tick.stop()
        self.box.kill(self.tick)
        restore(self.box.state)
        # What was asked since is taken back too: a budget, say, that had been lifted.
        self.ask("budget", gpu_hours=None)
        self.tick = self.box.daemon(CheckedTick)
        _begin(self.tick)
        self.tick()

    # -- people --------------------------------------------------------------------------------

    def under_way(self) -> bool:
        return self.tick.store.in_play().experiment.state == "running"

    @precondition(under_way)
    @fault(actions=st.lists(st.sampled_from(["pause", "drain", "resume"]), min_size=1, max_size=3))
    def somebody_asks(self, actions: list[Any]) -> None:
        for action in actions:
            self.ask(action)

    @precondition(under_way)
    @fault(kill=st.integers(1, 60))
    def the_budget_runs_out(self, kill: int) -> None:
        """Lowered below what is used, and lifted; a daemon is killed in between, or is not."""
        self.ask("budget", gpu_hours=1e-6)
        with suppress(Killed), fragile(self.tick, Fuse(kill)):
            self.run(3)
        self.box.kill(self.tick)
        self.ask("budget", gpu_hours=None)
        self.tick = self.box.daemon(CheckedTick)
        _begin(self.tick)
        self.tick()

    def newest(self, *states: State) -> list[int]:
        found = self.found
        newest = -1 if found.generation is None else found.generation.number
        return [one.id for one in found.born_in(newest) if one.state in states]

    @precondition(lambda self: self.newest(State.FAILED, State.PENDING))
    @fault(number=st.integers(0, 11), times=st.integers(1, 2))
    def somebody_retries(self, number: int, times: int) -> None:
        """One that failed comes to the same end: its genotype is what diverges."""
        again = self.newest(State.FAILED) or self.newest(State.PENDING)
        for _ in range(times):
            self.ask("retry", candidate=again[number % len(again)])

    @precondition(lambda self: self.meddled < MEDDLED and self.newest(*CLIMBING))
    @fault(number=st.integers(0, 11), running=st.booleans())
    def somebody_cuts(self, number: int, running: bool) -> None:
        if running:
            self.tick()  # so that somebody does, and has not come to its end
        if climbing := (running and self.newest(State.RUNNING)) or self.newest(*CLIMBING):
            self.meddled += 1
            self.ask("cut", candidate=climbing[number % len(climbing)])
            self.tick()

    @precondition(lambda self: self.meddled < MEDDLED and self.under_way())
    @fault(made=st.sampled_from(MADE))
    def somebody_injects(self, made: Genotype) -> None:
        self.meddled += 1
        self.ask("inject", genotype=made.to_json())

    def ask(self, action: Any, **arguments: Any) -> None:
        requests.file(self.box.state.requests, requests.new(action, **arguments))

    # -- the machine ---------------------------------------------------------------------------

    def a_job(self, number: int) -> str | None:
        jobs = sorted(self.box.working(), key=lambda token: self.spec(token).attempt)
        return jobs[number % len(jobs)] if jobs else None

    def spec(self, token: str) -> Spec:
        return read(Spec, self.box.launcher.jobs[token][2].spec)

    NUMBER = st.integers(0, 3)
    SLOT = st.sampled_from(GPUS)

    @fault(number=NUMBER)
    def lose(self, number: int) -> None:
        if token := self.a_job(number):
            del self.box.launcher.jobs[token]

    @fault(number=NUMBER)
    def stall(self, number: int) -> None:
        if token := self.a_job(number):
            self.box.launcher.silent.add(token)

    @fault(number=NUMBER)
    def damage_outcome(self, number: int) -> None:
        if token := self.a_job(number):
            self.box.launcher.damaged.add(token)

    @fault(number=NUMBER, verdict=st.sampled_from(["out_of_memory", "error"]))
    def strike(self, number: int, verdict: str) -> None:
        """What is forgiven once at a stage comes once at a stage."""
        if token := self.a_job(number):
            spec = self.spec(token)
            if (spec.candidate, stage_of(spec), verdict) not in self.struck:
                self.struck.add((spec.candidate, stage_of(spec), verdict))
                end, _, folder, slots = self.box.launcher.jobs[token]
                outcome = Outcome(verdict=verdict, message="once")  # type: ignore[arg-type]
                self.box.launcher.jobs[token] = (end, outcome, folder, slots)

    @fault(number=NUMBER)
    def hang_on(self, number: int) -> None:
        """A process that does not die, whatever one does."""
        if token := self.a_job(number):
            self.box.launcher.stuck.add(token)

    @precondition(lambda self: self.box.launcher.stuck)
    @fault()
    def die_at_last(self) -> None:
        self.processes_die()

    def processes_die(self) -> None:
        for token in self.box.launcher.stuck:
            self.box.launcher.jobs.pop(token, None)
        self.box.launcher.stuck.clear()

    @fault(free=st.sampled_from([0.0, 0.99, 1.05, 1.2, 100.0]))
    def disk(self, free: float) -> None:
        self.box.free = free * self.config.daemon.disk_reserve_gb * GB

    @fault(slot=SLOT)
    def gpu_is_lost(self, slot: str) -> None:
        self.box.faults[slot] = "GPU is lost"

    @precondition(lambda self: self.box.faults)
    @fault()
    def gpus_are_back(self) -> None:
        self.box.faults.clear()

    @fault(slot=SLOT)
    def a_stranger_comes(self, slot: str) -> None:
        self.box.strangers.add(slot)

    @precondition(lambda self: self.box.strangers)
    @fault()
    def strangers_go(self) -> None:
        self.box.strangers.clear()

    @fault(hours=st.integers(-100, 100))
    def set_the_clock(self, hours: int) -> None:
        self.box.wall.ahead += 3600.0 * hours

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        found = self.found
        assert found.experiment.state != "halted", found.experiment.reason
        self.slots_are_leased_by_live_attempts_alone(found)
        self.the_story_is_the_undisturbed_one_so_far(found)
        self.the_ledger_is_right(found)
        self.what_is_in_play_decides(found)
        self.weights_stand(found)
        self.what_is_paused_starts_nothing(found)
        self.each_request_is_answered_once()

    def what_is_paused_starts_nothing(self, found: Snapshot) -> None:
        if found.experiment.pause:
            slots, now = self.box.slots, self.box.wall()
            assert scheduling.starts(found, self.config, slots, now) == []

    def each_request_is_answered_once(self) -> None:
        database = self.tick.store._db
        (answers,) = database.execute("SELECT count(*) FROM request").fetchone()
        query = "SELECT count(*) FROM event WHERE event = 'request'"
        assert database.execute(query).fetchone() == (answers,)

    def slots_are_leased_by_live_attempts_alone(self, found: Snapshot) -> None:
        live = found.live_attempts
        held = [(slot, one.id) for one in live for slot in one.slots]
        assert len(held) == len(dict(held)), "a slot is leased twice"
        assert all(len(devices(one.slots)) == len(one.slots) for one in live)
        assert found.leases == dict(held)
        busy = [one.candidate for one in live]
        assert len(busy) == len(set(busy)), "a candidate runs twice"
        running = {c.id for c in found.candidates.values() if c.state is State.RUNNING}
        assert running == set(busy)
        assert set(self.box.launcher.jobs) <= {one.token for one in live}, "a worker is forgotten"

    def the_story_is_the_undisturbed_one_so_far(self, found: Snapshot) -> None:
        made, expected = decisions_of(found), self.expected
        if self.config.promotion.rule == "asha":  # of each rung as far as it has come
            for rung in {one[:3] for one in made}:
                so_far, whole = (
                    [one for one in some if one[:3] == rung]
                    for some in (made, expected["decisions"])
                )
                assert so_far == whole[: len(so_far)]
        else:
            assert made == expected["decisions"][: len(made)]
        for one in found.candidates.values():
            born = (one.generation, one.parent, one.hash, one.lineage_json)
            assert born == expected["candidates"][one.id][:4]
            if one.final:
                assert (one.state, one.reason) == expected["candidates"][one.id][5:]

    def the_ledger_is_right(self, found: Snapshot) -> None:
        now = self.box.wall()
        ended = [one for one in found.attempts if one.ended_at is not None]
        part = 1 / self.config.slots.share
        spent = sum(len(one.slots) * (one.ended_at - one.started_at) for one in ended)
        # One whose start could not be noted holds its slots all the same: the next turn clears it,
        # and charges it then (test_tick_faults).
        begun = [one for one in found.live_attempts if one.state is AttemptState.RUNNING]
        spent += sum(len(one.slots) * max(0, now - one.started_at) for one in begun)
        spent *= part
        assert found.gpu_hours(now) == pytest.approx(spent / 3600)
        assert self.tick.store.in_play().gpu_hours(now) == found.gpu_hours(now)

    def what_is_in_play_decides(self, found: Snapshot) -> None:
        now, slots = self.box.wall(), self.box.slots
        in_play = self.tick.store.in_play()
        for idle in (False, True):
            assert decisions.next_decision(in_play, self.config, idle) == decisions.next_decision(
                found, self.config, idle
            )
        assert scheduling.starts(in_play, self.config, slots, now) == scheduling.starts(
            found, self.config, slots, now
        )
        scored = self.tick.store.scored()
        assert retention.needed(in_play, self.config, scored) == retention.needed(
            found, self.config, scored
        )

    def weights_stand(self, found: Snapshot) -> None:
        wanted = must_stand(found, self.config)
        assert wanted <= weights_on_disk(self.box.state)
        assert wanted <= retention.needed(found, self.config, self.tick.store.scored())

    def teardown(self) -> None:
        if not hasattr(self, "home"):
            return
        try:
            self.box.faults.clear()
            self.box.strangers.clear()
            self.box.free = 1e15
            self.processes_die()
            self.ask("resume")  # which is refused where nothing is paused
            self.box.drive(self.tick)
            self.everything_holds()
            self.it_has_ended_as_it_had_to()
            self.tick.keep()
            self.nothing_stands_that_nobody_needs()
        finally:
            self.tick.store.close()
            self.summaries.__exit__(None, None, None)
            shutil.rmtree(self.home)

    def it_has_ended_as_it_had_to(self) -> None:
        assert story(self.tick.store) == self.expected


def some_are_long(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    """As some_diverge, but that to fine-tune some takes up to ten times as long as others."""
    seconds, outcome = some_diverge(spec, before)
    luck = int(Genotype.from_json(spec.genotype).hash[12:16], 16)
    return seconds * (1 + luck % 10 * ("finetune" in stage_of(spec))), outcome


class Overlap(Search):
    """Who is late rests on when attempts end, so no other search tells the same story; what is
    recorded of it is held to."""

    configs = OVERLAPPING
    script = staticmethod(some_are_long)

    def the_story_is_the_undisturbed_one_so_far(self, found: Snapshot) -> None:
        for generation in found.generations:
            late = found.late(generation.number)
            members = {
                one.candidate: one for one in found.members if one.generation == generation.number
            }
            ranked = {number for number, one in members.items() if one.rank is not None}
            assert not ranked & {*late}
            before = {*found.late(generation.number - 1)}
            born = {one.id for one in found.born_in(generation.number)}
            assert {n for n, one in members.items() if one.role == "offspring"} == born | before
            if generation.phase is Phase.COMPLETE:  # everybody is selected from, and once
                scored = [n for n in members if found.candidates[n].state is State.SCORED]
                assert ranked == {*scored} - {*late}

    def it_has_ended_as_it_had_to(self) -> None:
        found = self.found
        assert found.experiment.state == "complete"
        assert [one.number for one in found.generations] == [0, 1, 2, 3]
        assert all(one.final for one in found.candidates.values())
        # As many are born into the first one as survive, unless somebody was put in beside them.
        put_in = any(one.generation == 0 for one in found.injections)
        assert (put_in or not found.late(0)) and not found.late(3)


@pytest.mark.parametrize(("machine", "times"), [(Search, 12), (Overlap, 6)])
def test_whatever_goes_wrong_the_search_ends_as_if_nothing_had(machine: Any, times: int) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=times, stateful_step_count=40)
    )


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("machine", "times"), [(Search, 250), (Overlap, 150)])
def test_whatever_goes_wrong_for_long_the_search_ends_as_if_nothing_had(
    machine: Any, times: int
) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=times, stateful_step_count=60)
    )
