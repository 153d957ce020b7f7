"""One turn of the daemon: look at what runs, decide what follows, start what fits.

Everything here may be killed between any two lines. What stands in the database is true; what
does not is done again: results are moved by rename before their row is written, specs are written
before their worker starts, rows before their process.
"""

import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from nasd.contract import digests, slots
from nasd.contract.config import SCREEN, Config
from nasd.contract.errors import NasdError
from nasd.contract.protocol import (
    AttemptFolder,
    Heartbeat,
    Outcome,
    Verdict,
    read,
    sync_folder,
    write,
    write_atomically,
)
from nasd.contract.readable import of_baseline
from nasd.control import backups, retention, specs
from nasd.control.inbox import Inbox
from nasd.control.machine import MachineWatch, free_bytes
from nasd.control.pictures import Pictures, Unseen
from nasd.control.silence import Silence
from nasd.launch.gpus import Health
from nasd.launch.launcher import Launcher, NotYet, wait_until
from nasd.policy import births, decisions, endings, ladder, scheduling
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, AttemptVerdict, Event, QuarantineKind
from nasd.record.state import Attempt, Because, Breed, Ending, Snapshot, Word
from nasd.record.store import Ended, StageRecord, Store

log = logging.getLogger("nasd")

EXIT_SECONDS = 30.0  # for a worker that has written its outcome to be gone
RETRY_SECONDS = 600.0  # after a backup that failed
LONG_SECONDS = 0.1  # for which a turn ends attempts, and for which it starts some
ASK_AGAIN_SECONDS = 1.0  # between two requests to stop

GONE = "gone without an outcome"
UNHEARD = "ended by the request to stop, before it could hear it"  # as while it starts


@dataclass
class Tick:
    """What a turn needs. `config_folder`: where relative data paths start. `clock`: of the wall,
    for the record; `monotonic`: for time that passes, whatever happens to the wall's clock.
    `health`: of the GPUs, by slot; None while it is not known. `free_bytes`: of a folder's disk.
    `pictures`: what people see. `say`: tells people what is in the way of its turns, where that
    cannot be recorded. `leashed`: whether attempts die with the daemon, as of a launcher.
    """

    store: Store
    config: Config
    config_folder: Path
    state: StateFolder
    slots: tuple[str, ...]
    launcher: Launcher
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    health: Health = dict
    free_bytes: Callable[[Path], int] = free_bytes
    say: Callable[[str], None] = lambda text: None
    told: Callable[[], bool] = bool  # whether the daemon has been told to leave
    pictures: Pictures = field(default_factory=Unseen)
    leashed: bool = True

    def __post_init__(self) -> None:
        daemon = self.config.daemon
        self._silence = Silence(
            self.monotonic, 60 * daemon.start_minutes, 60 * daemon.stall_minutes
        )
        self._began: dict[int, float] = {}  # monotonic, of the attempts that this daemon started
        self._met: set[int] = set()  # attempts that this daemon started, or found alive
        self._asked: set[int] = set()  # attempts that this daemon has asked to stop
        self._away = ""  # why the launcher starts nothing
        self._machine = MachineWatch(
            *(self.store, self.config, self.state, self.slots, lambda pid: self.launcher.owns(pid)),
            *(self.clock, self.monotonic),
        )
        self._inbox = Inbox(
            self.store,
            self.config,
            self.state,
            self.clock,
            self._end_by_request,
            lambda: self.told(),
        )
        self.leaves = False  # somebody has asked the daemon to
        self.stopwatch = self.monotonic  # of a turn
        self.goes_on = False  # whether the last turn has left something to do at once
        self._since = self.stopwatch()
        self._observed = 0  # the attempt behind which the next turn goes on, if one was long
        age = backups.age(self.state, self.clock())
        self._kept_at = None if age is None else self.monotonic() - age

    def __call__(self) -> None:
        self.goes_on = False
        self.look()
        self.observe()
        self.leaves = self._inbox() or self.leaves
        if self.leaves:
            return
        self.decide()
        self.start()
        if self._keeping_is_due():
            self.keep()

    def _is_long(self) -> bool:
        """Whether this turn has ended attempts, or started some, for long enough, and what is left
        waits for another, at once: where there are very many, people and the disk are looked at
        meanwhile."""
        self.goes_on = self.goes_on or self.stopwatch() - self._since > LONG_SECONDS
        return self.goes_on

    # -- the machine ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Once, before the first turn of a daemon: what an earlier one left is put in order."""
        self._machine.begin()
        self.observe()
        self._inbox.begin()
        generation = self.store.in_play().generation
        if generation and generation.opened_at > backups.newest(self.state):
            self._kept_at = None  # the daemon before was killed on its way to it
        whole = self.store.read()
        retention.sweep(self.state, whole)
        # What a daemon that was killed had decided, but not yet drawn.
        newest = [one.number for one in whole.generations[-2:]]
        lately = {one.candidate for one in whole.members if one.generation in newest}
        self.pictures.show({*lately, *self.store.in_play().candidates}, newest, search=True)

    def look(self) -> None:
        """Holds the search while the disk is nearly full, and leaves GPUs alone that are lost,
        suspect, or in use by somebody else."""
        free = self.free_bytes(self.state.path)
        if self._machine.is_short(free):
            for attempt in self.store.in_play().live_attempts:
                self._ask_to_stop(attempt)
        self._machine.look(free, self.health())

    # -- observe -------------------------------------------------------------------------------

    def observe(self) -> None:
        """Ends every attempt that is gone, by the outcome it left behind, or has to go."""
        live = sorted(self.store.in_play().live_attempts, key=lambda one: one.id)
        behind = [one for one in live if one.id > self._observed] or live
        self._observed, self._since = 0, self.stopwatch()
        for known in behind:
            attempt, folder = self._begun(known), self.state.attempt(known.id)
            lost = self._why_ended(attempt, folder)
            if lost is None:
                continue
            told = attempt.id in self._asked and lost.startswith(GONE)
            try:
                self._end(attempt, folder, lost, UNHEARD if told else "")
            except NotYet as error:
                log.debug("attempt %d: %s", attempt.id, error)
            except NasdError as error:  # it keeps its slots, the others go on
                log.error("attempt %d cannot be ended yet: %s", attempt.id, error)
            else:
                if self._is_long():  # asked behind each that has ended, so there is no standstill
                    self._observed = known.id
                    break

    def _ask_to_stop(self, attempt: Attempt) -> bool:
        """At a checkpoint; asking again does no harm. Whether this was the first time."""
        self.launcher.stop(attempt.token)
        first = attempt.id not in self._asked
        self._asked.add(attempt.id)
        return first

    def _why_ended(self, attempt: Attempt, folder: AttemptFolder) -> str | None:
        """What to say of the attempt if it left no outcome; None while it lives and works."""
        if attempt.process is None or not self.launcher.alive(attempt.process):
            return f"{GONE}{_last_line(folder.log)}"
        if attempt.id not in self._met:
            self._adopt(attempt, folder)
        if self.launcher.waits(attempt.process) is not None:
            self._silence.forget(attempt.id)  # nothing is to be heard of it
            return None
        if folder.outcome.exists():
            late = self.clock() - folder.outcome.stat().st_mtime
            return "it did not leave" if not 0 <= late <= EXIT_SECONDS else None
        known = self.store.in_play().quarantine
        for device in slots.devices(attempt.slots):
            if device in known and known[device].kind is QuarantineKind.LOST:
                return f"{device}: {known[device].reason}"
        return self._silence.too_long(attempt.id, folder)

    def _begun(self, attempt: Attempt) -> Attempt:
        """As it is by now, where it has been in a queue: its slots are held from its begin on."""
        if attempt.state is AttemptState.RUNNING or attempt.process is None:
            return attempt
        if (why := self.launcher.waits(attempt.process)) is not None:
            if why != attempt.message:
                self.store.attempt_waits(attempt.id, attempt.process, why)
                log.info("candidate %d %s: %s", attempt.candidate, attempt.stage, why)
            return attempt
        now, at = self.clock(), self.launcher.began(attempt.process)
        at = now if at is None else min(now, max(attempt.started_at, at))
        self._began[attempt.id] = self.monotonic() - (now - at)
        self.store.attempt_begins(attempt.id, at)
        return replace(attempt, state=AttemptState.RUNNING, started_at=at, message="")

    def _adopt(self, attempt: Attempt, folder: AttemptFolder) -> None:
        """One that an earlier daemon started, and that outlived it."""
        self._met.add(attempt.id)
        with suppress(NasdError):
            if age := read(Heartbeat, folder.heartbeat).age:
                self._began[attempt.id] = self.monotonic() - age

    def _end(self, attempt: Attempt, folder: AttemptFolder, lost: str, stopped: str = "") -> None:
        """Ends an attempt. lost: what to say if there is no outcome. stopped: what to say in its
        place, if the daemon itself wanted it to stop."""
        word = None if attempt.process is None else self.launcher.word(attempt.process)
        self._clear(attempt)
        outcome = self._outcome(attempt, folder)
        snapshot = self.store.in_play()
        if word is not None:
            reached = folder.newest_step()
            outcome, lost = endings.heeded(snapshot, attempt, outcome, lost, word, reached)
        if outcome is None and stopped:
            outcome = Outcome(verdict=Verdict.STOPPED, message=stopped)
        if outcome is not None and outcome.verdict == Verdict.OUT_OF_MEMORY:
            crowded = [
                one.reason
                for slot in attempt.slots
                if (one := snapshot.left_alone(slot)) and one.kind is QuarantineKind.FOREIGN
            ]
            if crowded:  # somebody else had the memory
                outcome, lost = None, f"out of memory on a GPU {crowded[0]}"
        end = endings.ending(
            snapshot, self.config, attempt, outcome, lost, interrupted=attempt.id not in self._met
        )
        candidate = snapshot.candidates[attempt.candidate]
        if outcome is not None and endings.scores(candidate, end):
            metrics = ladder.whole_score(snapshot, self.config, candidate, outcome.metrics)
            outcome = outcome.model_copy(update={"metrics": metrics})
        self._close(attempt, folder, end, outcome, nullcontext())
        if word is not None:
            self._obey(attempt, word)

    def _obey(self, attempt: Attempt, word: Word) -> None:
        """What a person did to an attempt holds for those to come, until a person says otherwise;
        and what they have to mend is told at once."""
        where = f"candidate {attempt.candidate} at {attempt.stage}: {word.text}"
        if word.because is Because.CANCELLED and not self.store.in_play().experiment.pause:
            self.store.pause("drain", f"by hand ({where})")
            log.warning("%s: nothing starts until `nasd resume`", where)
        elif word.because is Because.REFUSED:
            self.store.halt(where, self.clock())
            log.error("halted: %s", where)

    def _end_by_request(
        self, attempt: Attempt, reason: str, within: AbstractContextManager[None]
    ) -> None:
        """Ends an attempt whose candidate is cut, in the transaction that answers the request."""
        self._clear(attempt)
        end = Ending(AttemptState.PREEMPTED, Event.CUT, message=reason, verdict=AttemptVerdict.CUT)
        self._close(attempt, self.state.attempt(attempt.id), end, None, within)

    def _clear(self, attempt: Attempt) -> None:
        """No slot is free before nothing of ours is left on it."""
        left = self.launcher.clear(attempt.token)
        if left:
            log.warning("attempt %d: ended %d processes left behind", attempt.id, left)

    def _close(
        self,
        attempt: Attempt,
        folder: AttemptFolder,
        end: Ending,
        outcome: Outcome | None,
        within: AbstractContextManager[None],
    ) -> None:
        record = None
        if end.state is AttemptState.SUCCEEDED:
            assert outcome is not None
            if outcome.has_result:
                self._publish(folder.result, self.state.result(attempt.candidate, attempt.stage))
            record = StageRecord(outcome.metrics, outcome.curve, outcome.steps, outcome.seconds)
        now = self.clock()
        ended = Ended(
            end,
            at=self._ended_at(folder, attempt, now),
            reached=folder.newest_step(),
            record=record,
            prepared=outcome.prepared.model_dump() if outcome and outcome.prepared else None,
        )
        with within:
            self.store.end_attempt(attempt.id, ended, now)
        if end.event in (Event.SCORE, Event.FAIL, Event.CUT):
            self.pictures.show([attempt.candidate])
        self._silence.forget(attempt.id)
        self._began.pop(attempt.id, None)
        self._met.discard(attempt.id)
        self._asked.discard(attempt.id)
        log.info(
            "candidate %d %s: attempt %d %s%s%s",
            attempt.candidate,
            attempt.stage,
            attempt.id,
            end.state,
            f" ({end.message})" if end.message else "",
            self._score_in_words(attempt.candidate) if end.event is Event.SCORE else "",
        )
        retention.clear(self.state, self.store.in_play(), attempt.candidate, attempt.stage)

    def _score_in_words(self, candidate: int) -> str:
        found = self.store.in_play()
        quality = found.quality(candidate)
        if quality is None:  # a screening has none
            return ""
        size = of_baseline(found.size(candidate))
        return f": quality {quality:.2f}, {size} of the baseline's parameters"

    def _outcome(self, attempt: Attempt, folder: AttemptFolder) -> Outcome | None:
        """What the worker says, if it is whole, this attempt's own, and its result stands."""
        if not folder.outcome.exists():
            return None
        try:
            outcome = read(Outcome, folder.outcome)
        except NasdError as error:
            log.warning("%s", error)
            return None
        if outcome.token != attempt.token:
            log.warning("%s is of another attempt, and counts for nothing", folder.outcome)
            return None
        if not digests.holds(outcome):
            log.warning("%s is damaged, and counts for nothing", folder.outcome)
            return None
        final = self.state.result(attempt.candidate, attempt.stage)
        if outcome.has_result and not (folder.result.exists() or final.exists()):
            log.warning("attempt %d: its result is gone, so it counts as lost", attempt.id)
            return None
        return outcome

    def _publish(self, source: Path, final: Path) -> None:
        """Moves a result to its candidate. Done before, if a kill came just behind the rename."""
        if not source.exists():
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            shutil.rmtree(final)
        source.rename(final)
        sync_folder(final.parent)

    def _ended_at(self, folder: AttemptFolder, attempt: Attempt, now: float) -> float:
        """When an attempt last held its slots: not while the box was off, whoever finds it later,
        and whatever happened to the clock meanwhile."""
        if attempt.state is AttemptState.STARTING and attempt.process is not None:
            return attempt.started_at  # it waited in a queue, and never held any
        if attempt.id in self._began:
            return attempt.started_at + self.monotonic() - self._began[attempt.id]
        try:
            beat = read(Heartbeat, folder.heartbeat)
        except NasdError:
            return attempt.started_at
        if beat.age > 0:
            return attempt.started_at + beat.age
        return min(now, max(attempt.started_at, beat.at))

    # -- decide --------------------------------------------------------------------------------

    def decide(self) -> None:
        """Applies decisions until nothing more follows from what is recorded."""
        before = self.store.in_play().generations
        try:
            while (
                decision := decisions.next_decision(self.store.in_play(), self.config, self._idle())
            ) is not None:
                self._apply(decision)
        finally:  # once for all that a turn decides, whatever ended it
            if self.store.in_play().generations != before:
                self.pictures.show([], search=True)

    def _idle(self) -> bool:
        overlaps = self.config.population.overlap
        return overlaps and scheduling.idle(self.store.in_play(), self.config, self.slots)

    def _apply(self, decision: decisions.Decision) -> None:
        now = self.clock()
        match decision:
            case decisions.OpenGeneration(number, parents, late):
                self.store.open_generation(number, parents, now, late)
                self._kept_at = None  # some of the last generation's weights are needed no more
                log.info("generation %d opens with %d parents", number, len(parents))
            case births.Screen(generation, mutants, by, payload):
                self.store.record_screening(generation, mutants, by, payload, SCREEN, now)
                log.info("generation %d: %d mutants are to be tried", generation, len(mutants))
            case Breed(generation):
                born = self.store.record_births(decision, now)
                self._draw()
                log.info(
                    "generation %d: candidates %d to %d are born", generation, born[0], born[-1]
                )
            case decisions.Cutoff(generation, stage, next_stage, promotion, nth):
                self.store.record_cutoff(generation, stage, next_stage, promotion, now, nth)
                self._draw()
                kept = sorted(promotion.kept)
                log.info("generation %d: cutoff after %s keeps %s", generation, stage, kept)
            case decisions.StartSelecting(generation, late):
                self.store.start_selecting(generation, now, late)
            case decisions.Repeat(generation, finalists, stage, payload, nth):
                self.store.record_repeat(generation, finalists, stage, payload, now, nth)
                self._draw()
                log.info(
                    "generation %d: %s are trained under further seeds", generation, [*finalists]
                )
            case decisions.Select(generation, members, payload):
                self.store.record_selection(generation, members, payload, now)
                self._draw()
                log.info("generation %d: survivors %s", generation, payload["survivors"])
            case decisions.Complete():
                self.store.complete(now)
                log.info("the search is complete")
            case decisions.Halt(reason):
                self.store.halt(reason, now)
                log.error("halted: %s", reason)

    def _draw(self) -> None:
        """All that is in play, and what was decided in the newest generation."""
        play = self.store.in_play()
        newest = () if play.generation is None else (play.generation.number,)
        self.pictures.show(play.candidates, newest)

    # -- start ---------------------------------------------------------------------------------

    def start(self) -> None:
        snapshot = self.store.in_play()
        paused = snapshot.experiment.pause == "pause"
        if paused or scheduling.budget_spent(snapshot, self.config, self.clock()):
            for attempt in snapshot.live_attempts:
                self._ask_to_stop(attempt)
            return
        found = scheduling.starts(snapshot, self.config, self.slots, self.clock())
        self._since = self.stopwatch()
        for number, one in enumerate(found):
            snapshot = self.store.in_play()
            # One before may have halted the search, or found nobody to start it.
            if not snapshot.experiment.runs or self._nobody_starts():
                break
            if number and self._is_long():
                break
            self._start(snapshot, one)
        if self.config.slots.widen:
            self._widen()

    def _nobody_starts(self) -> bool:
        """Whether the launcher is away; told when that changes."""
        away = self.launcher.away() or ""
        if away != self._away:
            self._away = away
            log.warning("%s", away or "what starts attempts answers again")
        return bool(away)

    def _widen(self) -> None:
        """Asks an attempt for a checkpoint that goes on with more slots, once it has left."""
        snapshot = self.store.in_play()
        beats = {}
        for one in snapshot.live_attempts:
            with suppress(NasdError):  # none yet
                beats[one.id] = read(Heartbeat, self.state.attempt(one.id).heartbeat)
        attempt = scheduling.widening(snapshot, self.config, self.slots, self.clock(), beats)
        if attempt is None:
            return
        if self._ask_to_stop(attempt):
            log.info(
                "candidate %d %s: attempt %d stops at a checkpoint, to go on with more slots",
                attempt.candidate,
                attempt.stage,
                attempt.id,
            )

    def _start(self, snapshot: Snapshot, one: scheduling.Start) -> None:
        token = secrets.token_hex(16)
        candidate = snapshot.candidates[one.candidate]
        start, _ = ladder.weights_of(snapshot, self.config, candidate)
        teacher = ladder.teacher_of(snapshot, self.config, candidate)
        for origin, how in ((start, "starts"), (teacher, "learns")):
            if origin is None or self.state.result(*origin).is_dir():
                continue
            reason = (
                f"candidate {candidate.id} at {one.stage} {how} from"
                f" {self.state.result(*origin)}, which is gone: put it back, or take a backup of"
                " the database from before it was made"
            )
            self.store.halt(reason, self.clock())
            log.error("halted: %s", reason)
            return
        attempt = self.store.start_attempt(candidate.id, one.stage, one.slots, token, self.clock())
        began = self.monotonic()
        self._met.add(attempt)
        folder = self.state.attempt(attempt)
        if folder.path.exists():  # of a search that was taken back to a backup
            shutil.rmtree(folder.path)
        folder.path.mkdir(parents=True)
        its = slots.one_a_device(one.slots)
        ranks = its[:1] if ladder.alone(self.config, one.stage) else its
        spec = specs.spec(
            *(snapshot, self.config, self.config_folder, self.state),
            *(candidate, attempt, len(its), slots.sharers(one.slots)),
        )
        write(digests.signed(spec), folder.spec)
        home = self.state.candidate(candidate.id)
        if not (home / "genotype.json").exists():
            home.mkdir(parents=True, exist_ok=True)
            text = json.dumps(candidate.genotype.to_json(), indent=1)
            write_atomically(home / "genotype.json", text.encode())
        try:
            process = self.launcher.start(folder, ranks, token)
        except NasdError as error:  # what may have come of it is ended in the next turn
            self._met.discard(attempt)
            if not isinstance(error, NotYet):
                self.store.halt(str(error), self.clock())
            log.error("candidate %d %s: %s", candidate.id, one.stage, error)
            return
        if (why := self.launcher.waits(process)) is None:
            self._began[attempt] = began  # even if that cannot be noted
            self.store.attempt_runs(attempt, process)
        else:
            self.store.attempt_waits(attempt, process, why)
        log.info(
            "candidate %d %s: attempt %d starts on %s",
            candidate.id,
            one.stage,
            attempt,
            " ".join(one.slots),
        )

    # -- keep ----------------------------------------------------------------------------------

    def _keeping_is_due(self) -> bool:
        interval = 3600 * self.config.daemon.backup_hours
        return self._kept_at is None or self.monotonic() - self._kept_at >= interval

    def keep(self) -> None:
        """A backup of the database, and only then the weights that nobody needs any more: so a
        search that is taken back to its newest backup finds all it needs."""
        # Until it is done: one that fails, as on a full disk, is tried again before long.
        self._kept_at = self.monotonic() - 3600 * self.config.daemon.backup_hours + RETRY_SECONDS
        backups.make(self.store, self.state, self.clock())
        self._kept_at = self.monotonic()
        wanted = retention.needed(self.store.in_play(), self.config, self.store.scored())
        gone = retention.collect(self.state, self.config, wanted)
        if gone:
            log.info("weights that nobody needs any more are removed: %s", ", ".join(gone))

    # -- stop ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Asks every running attempt for a checkpoint, waits for the grace period, ends the rest.

        Nothing is lost but the steps since the last checkpoint of an attempt that did not answer.
        Where attempts outlive the daemon, they go on while there is something to go on with.
        """
        live = self.store.in_play().live_attempts
        if live and not self.leashed and self.store.in_play().experiment.runs:
            log.info("%d attempts go on without the daemon; `nasd run` takes them up", len(live))
            return

        def running() -> list[Attempt]:
            return [one for one in live if one.process and self.launcher.alive(one.process)]

        end = time.monotonic() + self.config.daemon.stop_grace_seconds
        while (left := running()) and time.monotonic() < end:
            for attempt in left:  # again and again: one may not have been there to hear it
                self.launcher.stop(attempt.token)
            wait_until(lambda: not running(), min(ASK_AGAIN_SECONDS, end - time.monotonic()))
        end = max(end, time.monotonic() + EXIT_SECONDS)
        for attempt in live:
            while True:
                try:
                    self._end(attempt, self.state.attempt(attempt.id), "", "ended with the daemon")
                except NasdError as error:
                    if isinstance(error, NotYet) and time.monotonic() < end:
                        time.sleep(min(ASK_AGAIN_SECONDS, max(0.0, end - time.monotonic())))
                        continue
                    log.error("attempt %d cannot be ended yet: %s", attempt.id, error)
                break


def _last_line(log_file: Path) -> str:
    """What the worker said last, if it said anything: not always why it is gone."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    words = [line.strip() for line in lines if line.strip()]
    return f"; the last line of its log: {words[-1][:200]}" if words else ""
