"""The only writer of the database. Every public method is one transaction, or part of `answer`'s.

The daemon holds an exclusive lock on state/daemon.lock for as long as it lives, so there is one
store open for writing at a time.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nasd.contract.config import Measure
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Genotype, ancestry, parameters, unchanged
from nasd.contract.latency import Table
from nasd.contract.protocol import sync_folder
from nasd.contract.slots import worth
from nasd.record import snapshot
from nasd.record.database_file import damaged, fault
from nasd.record.lifecycle import (
    ATTEMPT_TRANSITIONS,
    NEXT_PHASE,
    AttemptState,
    CandidateKind,
    DecisionKind,
    Event,
    ExperimentState,
    ImpossibleTransition,
    Phase,
    QuarantineKind,
    State,
    target,
)
from nasd.record.requests import Request
from nasd.record.sqlite import Database
from nasd.record.state import Breed, Ending, Holdings, LoggedEvent, Scored, Selected, Snapshot
from nasd.search.fidelity.promotion import Promotion
from nasd.search.objectives.figures import figures
from nasd.search.variation.breeding import Bred

BASELINE = 0  # the id of the baseline


@dataclass(frozen=True)
class StageRecord:
    """What a succeeded stage leaves in the database."""

    metrics: Mapping[str, float]
    curve: Sequence[tuple[int, float]]
    steps: int
    seconds: float


@dataclass(frozen=True)
class Ended:
    """An attempt that is over. at: when it last held its slots. reached: the step of its newest
    checkpoint. record: of a stage that is done. prepared: what prepare has found."""

    ending: Ending
    at: float
    reached: int = 0
    record: StageRecord | None = None
    prepared: Mapping[str, Any] | None = None


class Store:
    def __init__(self, path: Path) -> None:
        """Opens the database and brings its schema up to date; an older one is backed up first."""
        from nasd.record.migrations import migrations

        self._path = path
        self._in_play: tuple[int, Snapshot] | None = None
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = Database(str(path))
        connection = self._db.conn
        connection.execute("PRAGMA busy_timeout = 10000")
        if not new:
            try:
                new = not snapshot.check_schema(connection, path, reading=False)
            except BaseException:
                self.close()
                raise
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a decision that was acted upon must survive a power cut. 0.15 ms a commit.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        if not new and migrations.pending(self._db):
            self.backup(path.parent / "backups" / f"before-schema-{snapshot.SCHEMA}.db")
        migrations.apply(self._db)

    def close(self) -> None:
        self._db.close()

    def check(self) -> None:
        """Raises NasdError if the database is damaged, wherever: takes reading all of it."""
        if found := fault(self._db.conn):
            raise NasdError(damaged(self._path, found))

    def read(self) -> Snapshot:
        """The whole search."""
        return snapshot.read(self._db.conn)

    def in_play(self) -> Snapshot:
        """The baseline and the newest generation; the same object until something is written."""
        changes = self._db.conn.total_changes
        if self._in_play is None or self._in_play[0] != changes:
            self._in_play = changes, snapshot.read(self._db.conn, whole=False)
        return self._in_play[1]

    def lines(self, candidates: Iterable[int]) -> Snapshot:
        """These candidates with all that they descend from; attempts and members are of these."""
        return snapshot.read(self._db.conn, lines=candidates)

    def selected(self) -> list[Selected]:
        """The generations that were selected."""
        return snapshot.selected(self._db.conn)

    def holdings(self) -> Holdings:
        """The slots that all attempts ever held."""
        return snapshot.holdings(self._db.conn)

    def scored(self) -> list[Scored]:
        """Every scored candidate."""
        return snapshot.scored(self._db.conn)

    def backup(self, path: Path) -> None:
        """Copies the database, by SQLite's own online backup; whole at `path`, or not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)
        copy = sqlite3.connect(temporary)
        try:
            copy.execute("PRAGMA synchronous = OFF")  # the whole of it is synced below
            self._db.conn.backup(copy)
            # One file that needs no other beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
        finally:
            copy.close()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)

    # -- the experiment ------------------------------------------------------------------------

    def create_experiment(
        self,
        name: str,
        seed: int,
        config: Mapping[str, Any],
        backbone: Backbone,
        baseline: Genotype,
        first_stage: str,
        now: float,
    ) -> None:
        """The experiment's row and the baseline's, born at `first_stage`."""
        with self._transaction():
            self._insert(
                "experiment",
                id=1,
                name=name,
                seed=seed,
                config=json.dumps(config),
                backbone=json.dumps(asdict(backbone)),
                state=str(ExperimentState.RUNNING),
                created_at=now,
            )
            founder = Bred(BASELINE, baseline, unchanged(baseline))
            self._bear(BASELINE, None, founder, backbone, first_stage, now)

    def change_config(self, config: Mapping[str, Any], changes: str, now: float) -> None:
        """Another config for what comes; the daemon has checked that it may change so. A budget of
        its own that is new takes the place of one that was set by request."""
        with self._transaction():
            before = json.loads(self._value("SELECT config FROM experiment"))["experiment"]
            key = "budget_gpu_hours"
            if before[key] != config["experiment"][key]:
                self._db.execute("UPDATE experiment SET budget = NULL")
            self._db.execute("UPDATE experiment SET config = ?", (json.dumps(config),))
            self._log(now, event="config", detail=changes)

    def complete(self, now: float) -> None:
        with self._transaction():
            self._db.execute(
                "UPDATE experiment SET state = ?, completed_at = ?",
                (str(ExperimentState.COMPLETE), now),
            )
            self._log(now, event="complete")

    def halt(self, reason: str, now: float) -> None:
        """Nothing new starts until a person has mended the cause and starts nasd again."""
        with self._transaction():
            self._db.execute(
                "UPDATE experiment SET state = ?, reason = ?",
                (str(ExperimentState.HALTED), reason),
            )
            self._log(now, event="halted", detail=reason)

    def resume(self, now: float) -> None:
        """After a halt, or with more generations to go: setbacks until now no longer count."""
        with self._transaction():
            self._db.execute(
                "UPDATE experiment SET state = ?, reason = '', completed_at = NULL,"
                " resumed_at = ?, resumed_after = (SELECT coalesce(max(id), 0) FROM attempt)",
                (str(ExperimentState.RUNNING), now),
            )
            self._log(now, event="resumed")

    def note(self, event: str, detail: str, now: float, attempt: int | None = None) -> None:
        """An event of no candidate's: the daemon starting, a warning."""
        with self._transaction():
            self._log(now, event=event, detail=detail, attempt=attempt)

    def newest_event(self) -> int:
        """Its number; 0 before the first."""
        return int(self._value("SELECT coalesce(max(id), 0) FROM event"))

    def events_after(self, number: int) -> list[LoggedEvent]:
        """Those of no candidate's alone, oldest first."""
        rows = self._db.execute(
            "SELECT at, candidate, attempt, event, source, target, stage, detail FROM event"
            " WHERE id > ? AND candidate IS NULL ORDER BY id",
            (number,),
        ).fetchall()
        return [LoggedEvent(*row) for row in rows]

    def hold(self, reason: str, now: float) -> None:
        """Nothing starts as long as there is a reason; "" lifts it."""
        with self._transaction():
            self._db.execute("UPDATE experiment SET hold = ?", (reason,))
            self._log(now, event="hold" if reason else "released", detail=reason)

    def pause(self, kind: str, note: str) -> None:
        """kind: "pause" or "drain", and "" to go on. note: by whom, and why."""
        with self._transaction():
            self._db.execute("UPDATE experiment SET pause = ?, pause_note = ?", (kind, note))

    def set_budget(self, gpu_hours: float | None) -> None:
        """None: no limit."""
        with self._transaction():
            self._db.execute("UPDATE experiment SET budget = ?", (json.dumps(gpu_hours),))

    def quarantine(self, slot: str, kind: QuarantineKind, reason: str, now: float) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM quarantine WHERE slot = ?", (slot,))
            self._insert("quarantine", slot=slot, kind=str(kind), reason=reason, since=now)
            self._log(now, event="quarantine", detail=f"{slot}: {reason}")

    def release(self, slot: str, now: float) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM quarantine WHERE slot = ?", (slot,))
            self._log(now, event="released", detail=slot)

    # -- requests ------------------------------------------------------------------------------

    def answered(self, request: str) -> bool:
        return snapshot.answer(self._db.conn, request) is not None

    @contextmanager
    def answer(
        self, request: Request, accepted: bool, text: str, now: float, about: int | None = None
    ) -> Iterator[None]:
        """Records the answer to a request, once; what is written within, its effect, stands with
        it or not at all. about: the candidate."""
        with self._transaction():
            self._insert(
                "request",
                id=request.id,
                action=request.action,
                arguments=json.dumps(request.arguments),
                who=request.who,
                why=request.why,
                asked_at=request.at,
                answered_at=now,
                accepted=int(accepted),
                answer=text,
            )
            outcome = text if accepted else f"refused, {text}"
            detail = f"{request.action} {request.by} - {outcome}"
            self._log(now, event="request", detail=detail, candidate=about)
            yield

    def retry(self, candidate: int, reason: str, now: float) -> None:
        """Its setbacks so far count no more; one that has failed is pending again."""
        with self._transaction():
            self._db.execute(
                "UPDATE candidate SET retried_after = (SELECT coalesce(max(id), 0) FROM attempt)"
                " WHERE id = ?",
                (candidate,),
            )
            if self._value("SELECT state FROM candidate WHERE id = ?", candidate) == State.FAILED:
                self._advance(candidate, Event.RETRY, now, detail=reason)

    def inject(self, genotype: Genotype, request: str) -> None:
        """It waits for the next generation that is bred."""
        with self._transaction():
            text = json.dumps(genotype.to_json())
            self._insert("injection", genotype=text, hash=genotype.hash, request=request)

    def revive(self, stages: Mapping[int, str], reason: str, now: float) -> None:
        """Cut candidates go on at these stages, and with them the search."""
        with self._transaction():
            self._db.execute(
                "UPDATE experiment SET state = ?, reason = '', completed_at = NULL",
                (str(ExperimentState.RUNNING),),
            )
            for candidate, stage in stages.items():
                self._advance(candidate, Event.REVIVE, now, stage, detail=reason)

    def refuse_damaged(self, request: str, text: str, now: float) -> None:
        """The answer to a request of which nothing can be read but its id."""
        with self._transaction():
            nothing = {"action": "", "arguments": "{}", "who": "", "why": ""}
            at = {"asked_at": now, "answered_at": now}
            self._insert("request", id=request, **nothing, **at, accepted=0, answer=text)
            self._log(now, event="request", detail=f"refused, {text}")

    # -- decisions -----------------------------------------------------------------------------

    def open_generation(
        self, number: int, parents: Sequence[int], now: float, late: Sequence[int] = ()
    ) -> None:
        """late: who is selected from as its own offspring are, though born before."""
        with self._transaction():
            self._insert("generation", number=number, phase=str(Phase.BREEDING), opened_at=now)
            for parent in parents:
                self._insert("member", generation=number, candidate=parent, role="parent")
            for one in late:
                self._insert("member", generation=number, candidate=one, role="offspring")
            self._log(now, event="generation", detail=f"generation {number} opens")

    def record_births(self, breed: Breed, now: float) -> list[int]:
        """The breed decision and all its candidates; the generation climbs from here on."""
        generation, first_stage = breed.generation, breed.first_stage
        with self._transaction():
            self._decide(generation, DecisionKind.BREED, "", breed.payload, now)
            backbone = Backbone(**json.loads(self._value("SELECT backbone FROM experiment")))
            first = self._value("SELECT max(id) FROM candidate") + 1
            for number, birth in enumerate(breed.births, first):
                self._bear(number, generation, birth, backbone, first_stage, now)
                self._insert("member", generation=generation, candidate=number, role="offspring")
            for injection, place in breed.injections.items():
                self._db.execute(
                    "UPDATE injection SET generation = ?, candidate = ? WHERE id = ?",
                    (generation, None if place is None else first + place, injection),
                )
                if place is None:
                    detail = f"injection {injection} is not born: its genotype had been by then"
                    self._log(now, event="injection", detail=detail)
            if breed.control is not None:
                number = first + len(breed.births)
                kind = CandidateKind.CONTROL
                self._bear(number, generation, breed.control, backbone, first_stage, now, kind)
            for mutant, loss in breed.losses.items():
                self._db.execute("UPDATE mutant SET loss = ? WHERE id = ?", (loss, mutant))
            for number, mutant in enumerate(breed.chosen, first):
                self._db.execute("UPDATE mutant SET candidate = ? WHERE id = ?", (number, mutant))
                untrained = breed.losses.get(mutant)
                self._db.execute(
                    "UPDATE candidate SET untrained = ? WHERE id = ?", (untrained, number)
                )
            self._next_phase(generation, Phase.BREEDING, now)
            return list(range(first, first + len(breed.births)))

    def record_screening(
        self,
        generation: int,
        mutants: Sequence[Bred],
        by: Sequence[int],
        payload: Mapping[str, Any],
        stage: str,
        now: float,
    ) -> None:
        """The mutants that are to be tried untrained, and what tries them: by, the parent of whose
        mutants each has its part."""
        with self._transaction():
            self._decide(generation, DecisionKind.SCREEN, "", payload, now)
            backbone = Backbone(**json.loads(self._value("SELECT backbone FROM experiment")))
            for one in mutants:
                self._insert(
                    "mutant",
                    generation=generation,
                    parent=one.parent,
                    second=one.second,
                    genotype=json.dumps(one.genotype.to_json()),
                    lineage=json.dumps([block.to_json() for block in one.lineage]),
                    operators=json.dumps(one.operators),
                    parameters=parameters(one.genotype, backbone),
                    figures=self._figures(one.genotype, backbone),
                )
            number = self._value("SELECT max(id) FROM candidate") + 1
            kind = CandidateKind.SCREENING
            for place, parent in enumerate(by):
                text = self._value("SELECT genotype FROM candidate WHERE id = ?", parent)
                genotype = Genotype.from_json(json.loads(text))
                itself = Bred(parent, genotype, unchanged(genotype))
                self._bear(number + place, generation, itself, backbone, stage, now, kind)

    def record_cutoff(
        self,
        generation: int,
        stage: str,
        next_stage: str,
        promotion: Promotion,
        now: float,
        nth: int = 0,
    ) -> None:
        """The cutoff after `stage`: whom it keeps go on to `next_stage`. nth: from 0, of those
        after that stage."""
        with self._transaction():
            told = promotion.to_json()
            self._decide(generation, DecisionKind.CUTOFF, stage, told, now, nth)
            for candidate in sorted(promotion.kept):
                # Of one decision about all, the whole is told; of one about a few, why these now.
                why = promotion.reasons[candidate] if promotion.among else ""
                self._advance(candidate, Event.KEEP, now, next_stage, detail=why)
            for candidate in sorted(promotion.cut):
                self._advance(candidate, Event.CUT, now, detail=promotion.reasons[candidate])

    def start_selecting(self, generation: int, now: float, late: Sequence[int] = ()) -> None:
        """late: who is still under way, and not waited for."""
        with self._transaction():
            if late:
                told = ", ".join(map(str, late))
                detail = (
                    f"slots are idle: generation {generation} is selected from, {told} with the"
                )
                self._log(now, event="generation", detail=f"{detail} next")
            self._next_phase(generation, Phase.CLIMBING, now)

    def record_repeat(
        self,
        generation: int,
        finalists: Sequence[int],
        stage: str,
        payload: Mapping[str, Any],
        now: float,
        nth: int,
    ) -> None:
        """Who is to be trained under further seeds, from that stage on, before it is selected."""
        with self._transaction():
            self._decide(generation, DecisionKind.REPEAT, "", payload, now, nth)
            for candidate in finalists:
                self._advance(candidate, Event.REPEAT, now, stage)

    def record_selection(
        self,
        generation: int,
        members: Mapping[int, tuple[bool, int, float]],
        payload: Mapping[str, Any],
        now: float,
    ) -> None:
        """members maps candidates to (survives, rank, crowding distance)."""
        with self._transaction():
            self._decide(generation, DecisionKind.SELECT, "", payload, now)
            for candidate, (survives, rank, crowding) in members.items():
                changed = self._db.execute(
                    "UPDATE member SET survives = ?, rank = ?, crowding = ?"
                    " WHERE generation = ? AND candidate = ?",
                    (int(survives), rank, crowding, generation, candidate),
                ).rowcount
                assert changed == 1, f"candidate {candidate} is no member of {generation}"
            self._next_phase(generation, Phase.SELECTING, now)

    # -- candidates and attempts ---------------------------------------------------------------

    def advance(
        self,
        candidate: int,
        event: Event,
        now: float,
        stage: str | None = None,
        attempt: int | None = None,
        detail: str = "",
    ) -> None:
        """Moves a candidate along an edge of the table; raises ImpossibleTransition otherwise."""
        with self._transaction():
            self._advance(candidate, event, now, stage, attempt, detail)

    def start_attempt(
        self, candidate: int, stage: str, slots: Sequence[str], token: str, now: float
    ) -> int:
        """Leases the slots and writes the attempt's row, before any process exists."""
        with self._transaction():
            number = self._value(
                "SELECT coalesce(max(number), 0) + 1 FROM attempt"
                " WHERE candidate = ? AND stage = ?",
                candidate,
                stage,
            )
            attempt = self._insert(
                "attempt",
                candidate=candidate,
                stage=stage,
                number=number,
                state=str(AttemptState.STARTING),
                slots=json.dumps(list(slots)),
                token=token,
                started_at=now,
            )
            for slot in slots:
                self._insert("lease", slot=slot, attempt=attempt)
            self._advance(candidate, Event.START, now, attempt=attempt, detail=" ".join(slots))
            return attempt

    def attempt_runs(self, attempt: int, process: Mapping[str, Any]) -> None:
        with self._transaction():
            self._move_attempt(attempt, AttemptState.RUNNING)
            self._db.execute(
                "UPDATE attempt SET process = ? WHERE id = ?", (json.dumps(process), attempt)
            )

    def attempt_waits(self, attempt: int, process: Mapping[str, Any], why: str) -> None:
        """It has been handed to a queue, and has not begun; again where the reason is another."""
        with self._transaction():
            self._db.execute(
                "UPDATE attempt SET process = ?, message = ? WHERE id = ?",
                (json.dumps(process), why, attempt),
            )

    def attempt_begins(self, attempt: int, at: float) -> None:
        """One that has waited; its slots are held from here on."""
        with self._transaction():
            self._move_attempt(attempt, AttemptState.RUNNING)
            self._db.execute(
                "UPDATE attempt SET started_at = max(started_at, ?), message = '' WHERE id = ?",
                (at, attempt),
            )

    def end_attempt(self, attempt: int, ended: Ended, now: float) -> None:
        """Ends an attempt, frees its slots, records its results and moves its candidate."""
        ending, record = ended.ending, ended.record
        with self._transaction():
            self._move_attempt(attempt, ending.state)
            self._db.execute(
                "UPDATE attempt SET ended_at = max(started_at, ?), verdict = ?, message = ?,"
                " reached = ? WHERE id = ?",
                (ended.at, str(ending.verdict), ending.message, ended.reached, attempt),
            )
            candidate, stage, held, seconds = self._row(
                "SELECT candidate, stage, slots, ended_at - started_at FROM attempt WHERE id = ?",
                attempt,
            )
            # The ledger as a running total: a sum over all attempts would be read each turn.
            self._db.execute(
                "UPDATE experiment SET slot_seconds = slot_seconds + ?",
                (worth(json.loads(held)) * seconds,),
            )
            self._db.execute("DELETE FROM lease WHERE attempt = ?", (attempt,))
            if record is not None:
                self._insert(
                    "result",
                    candidate=candidate,
                    stage=stage,
                    attempt=attempt,
                    metrics=json.dumps(dict(record.metrics)),
                    curve=json.dumps([list(point) for point in record.curve]),
                    steps=record.steps,
                    seconds=record.seconds,
                    at=now,
                )
            if ended.prepared is not None:
                text = json.dumps(ended.prepared)
                self._db.execute("UPDATE experiment SET prepared = ?", (text,))
                self._tell_of_baseline()
            self._advance(candidate, ending.event, now, ending.next_stage, attempt, ending.message)

    # -- inside a transaction ------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: a transaction that reads before it writes would fail under WAL if another
        # writer came between, whatever the busy timeout.
        connection = self._db.conn
        if connection.in_transaction:  # within `answer`
            yield
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # on a full disk, SQLite may have rolled back already
                connection.execute("ROLLBACK")
            raise

    def _bear(
        self,
        number: int,
        generation: int | None,
        birth: Bred,
        backbone: Backbone,
        stage: str,
        now: float,
        kind: CandidateKind = CandidateKind.CANDIDATE,
    ) -> None:
        """generation: None for the baseline, which has no parents."""
        founder = generation is None
        stage = birth.begins or stage
        parents = (
            [] if founder else [one for one in (birth.parent, birth.second) if one is not None]
        )
        lines = tuple(f"{number}.{index}" for index in range(len(birth.lineage)))
        if not founder:
            lines = ancestry(birth.lineage, number, [self._ancestry(one) for one in parents])
        self._insert(
            "candidate",
            id=number,
            generation=generation,
            parent=None if founder else birth.parent,
            genotype=json.dumps(birth.genotype.to_json()),
            hash=_name(birth, number, kind),
            lineage=json.dumps([block.to_json() for block in birth.lineage]),
            parameters=parameters(birth.genotype, backbone),
            figures=self._figures(birth.genotype, backbone),
            stage=stage,
            state=str(target(None, Event.BORN)),
            ancestry=json.dumps(lines),
            operators=json.dumps(birth.operators),
            kind=str(kind),
        )
        for place, parent in enumerate(parents):
            self._insert("parentage", child=number, place=place, parent=parent)
        detail = f"from {' and '.join(map(str, parents))}: " if parents else ""
        detail += str(birth.genotype) if kind is CandidateKind.CANDIDATE else str(kind)
        if birth.begins:
            detail += f"; nothing in it is new, so it begins at {birth.begins}"
        self._log(
            now,
            candidate=number,
            event=str(Event.BORN),
            target="pending",
            stage=stage,
            detail=detail,
        )

    def _figures(self, genotype: Genotype, backbone: Backbone) -> str:
        config, prepared = self._row("SELECT config, prepared FROM experiment")
        measure = Measure(**json.loads(config).get("measure", {}))
        told = None if prepared is None else json.loads(prepared).get("latency")
        table = Table.from_json(told) if told else None
        return json.dumps(figures(genotype, backbone, measure, table))

    def _tell_of_baseline(self) -> None:
        """It was born before there was a latency table."""
        backbone = Backbone(**json.loads(self._value("SELECT backbone FROM experiment")))
        text = self._value("SELECT genotype FROM candidate WHERE id = ?", BASELINE)
        found = self._figures(Genotype.from_json(json.loads(text)), backbone)
        self._db.execute("UPDATE candidate SET figures = ? WHERE id = ?", (found, BASELINE))

    def _ancestry(self, candidate: int) -> list[str]:
        found: list[str] = json.loads(
            self._value("SELECT ancestry FROM candidate WHERE id = ?", candidate)
        )
        return found

    def _advance(
        self,
        candidate: int,
        event: Event,
        now: float,
        stage: str | None = None,
        attempt: int | None = None,
        detail: str = "",
    ) -> None:
        source, at_stage = self._row("SELECT state, stage FROM candidate WHERE id = ?", candidate)
        to = target(source, event)
        changed = self._db.execute(
            "UPDATE candidate SET state = ?, stage = ?, reason = ? WHERE id = ? AND state = ?",
            (str(to), stage or at_stage, detail if event in _TELLING else "", candidate, source),
        ).rowcount
        if changed != 1:
            raise ImpossibleTransition(source, event)
        self._log(
            now,
            candidate=candidate,
            attempt=attempt,
            event=str(event),
            source=source,
            target=str(to),
            stage=stage or at_stage,
            detail=detail,
        )

    def _move_attempt(self, attempt: int, to: AttemptState) -> None:
        source = AttemptState(self._value("SELECT state FROM attempt WHERE id = ?", attempt))
        assert (source, to) in ATTEMPT_TRANSITIONS, f"attempt {attempt}: {source} to {to}"
        # ended_at and state change together: the row's CHECK sees one statement at a time.
        self._db.execute(
            "UPDATE attempt SET state = ?, ended_at = CASE WHEN ? THEN started_at END"
            " WHERE id = ? AND state = ?",
            (str(to), to is not AttemptState.RUNNING, attempt, str(source)),
        )

    def _next_phase(self, generation: int, source: Phase, now: float) -> None:
        to = NEXT_PHASE[source]
        changed = self._db.execute(
            "UPDATE generation SET phase = ?, completed_at = ? WHERE number = ? AND phase = ?",
            (str(to), now if to is Phase.COMPLETE else None, generation, str(source)),
        ).rowcount
        assert changed == 1, f"generation {generation} is not {source}"
        self._log(now, event="phase", detail=f"generation {generation}: {to}")

    def _decide(
        self,
        generation: int,
        kind: DecisionKind,
        stage: str,
        payload: Mapping[str, Any],
        now: float,
        nth: int = 0,
    ) -> None:
        self._insert(
            "decision",
            generation=generation,
            kind=str(kind),
            stage=stage,
            nth=nth,
            payload=json.dumps(payload),
            at=now,
        )

    def _log(self, now: float, event: str, **columns: Any) -> None:
        self._insert("event", at=now, event=event, **columns)

    def _insert(self, table: str, **row: Any) -> int:
        names = ", ".join(row)
        marks = ", ".join("?" * len(row))
        cursor = self._db.execute(
            f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values())
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _value(self, query: str, *arguments: Any) -> Any:
        return self._row(query, *arguments)[0]

    def _row(self, query: str, *arguments: Any) -> Any:
        row = self._db.execute(query, arguments).fetchone()
        if row is None:
            raise NasdError(f"the database has no row for {arguments}")
        return row


# Events whose detail is the reason of the state they lead to.
_TELLING = frozenset({Event.CUT, Event.FAIL, Event.INTERRUPT, Event.RETRY, Event.REVIVE})


def _name(birth: Bred, number: int, kind: CandidateKind) -> str:
    """Its hash: no two candidates have the same. Whoever has the genotype of somebody else, to be
    trained on or as another kind, is told from it by its number."""
    if kind is not CandidateKind.CANDIDATE:
        return f"{kind}-{number}"
    return f"{birth.genotype.hash}.{number}" if birth.trains_on else birth.genotype.hash
