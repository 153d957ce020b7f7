"""What the database says, read in one go: the input of every decision and of every view.

Read-only, and standard library alone, so that `nasd status` starts fast. Writing is the store's.

A snapshot holds the whole search, or what is in play: the baseline, and the newest generation's
parents and offspring. Decisions need no more, and so take no longer in a search of thousands.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, BlockLineage, Genotype, Lineage
from nasd.contract.readable import hours_unit
from nasd.record.database_file import damaged, readable, unreadable
from nasd.record.lifecycle import FINAL, LIVE_ATTEMPT, AttemptState, Phase, State

PAUSED = {"pause": "paused", "drain": "draining"}  # Experiment.pause, in words
SCHEMA = 4  # how many migrations this version of nasd knows


class NoExperiment(NasdError):
    def __init__(self, state: Path) -> None:
        super().__init__(f"{state} holds no experiment yet: start one with `nasd run`")


class OlderSchema(NasdError):
    def __init__(self, path: Path, found: int) -> None:
        super().__init__(
            f"{path} was written by an older nasd (schema {found}, this one knows {SCHEMA}):"
            " `nasd run` brings it up to date, after a backup"
        )


@dataclass(frozen=True, slots=True)
class Experiment:
    name: str
    seed: int
    config: dict[str, Any]
    backbone: Backbone
    prepared: dict[str, Any] | None
    state: str
    reason: str
    created_at: float
    completed_at: float | None
    resumed_after: int  # the newest attempt at the last resumption after a halt; 0 without one
    hold: str  # why nothing starts just now, "" if nothing is in the way
    pause: str  # "pause": nothing runs; "drain": nothing new starts; "": neither
    pause_note: str  # by whom, and why
    budget_set: str | None  # by request: GPU-hours or null, as JSON; None: it is the config's

    def budget(self, configured: float | None) -> float | None:
        """GPU-hours that the search may take, None without a limit; configured: as the config
        says, which holds until a request sets another, and again from its own next change on."""
        return configured if self.budget_set is None else json.loads(self.budget_set)


@dataclass(frozen=True, slots=True)
class Generation:
    number: int
    phase: Phase
    opened_at: float
    completed_at: float | None


@dataclass(frozen=True)
class Candidate:
    id: int
    generation: int | None  # None: the baseline
    parent: int | None
    genotype_json: str
    hash: str
    lineage_json: str
    parameters: int
    stage: str
    state: State
    reason: str
    retried_after: int = 0  # the newest attempt when a person had it tried again
    second: int | None = None  # of a crossover: the parent whom its lineage calls 1
    ancestry: tuple[str, ...] = ()  # the line of descent of each of its blocks
    operators: tuple[str, ...] = ()  # by which it was made, where they have names

    @property
    def parents(self) -> tuple[int, ...]:
        """None for the baseline, two for a child of a crossover."""
        return tuple(one for one in (self.parent, self.second) if one is not None)

    @cached_property
    def genotype(self) -> Genotype:
        return Genotype.from_json(json.loads(self.genotype_json))

    @cached_property
    def lineage(self) -> Lineage:
        return tuple(BlockLineage.from_json(block) for block in json.loads(self.lineage_json))

    @property
    def is_baseline(self) -> bool:
        return self.generation is None

    @property
    def final(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class Attempt:
    id: int
    candidate: int
    stage: str
    number: int
    state: AttemptState
    slots: tuple[str, ...]
    token: str
    process: dict[str, Any] | None
    verdict: str
    message: str
    started_at: float
    ended_at: float | None
    reached: int  # step of its newest checkpoint when it ended

    @property
    def live(self) -> bool:
        return self.state in LIVE_ATTEMPT


# When attempts held some slots together: from, and until; infinite where they still do.
Holdings = Mapping[tuple[str, ...], Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Selected:
    """A generation that was selected. best_quality: of parents and offspring, None if nobody of
    them was scored."""

    number: int
    opened_at: float
    completed_at: float
    hypervolume: float
    best_quality: float | None


@dataclass(frozen=True)
class StageResult:
    """metrics: as the worker measured them; curve: (step, evaluation loss). Both are read when they
    are asked for: of most results of a long search they never are."""

    candidate: int
    stage: str
    metrics_json: str
    curve_json: str
    steps: int
    seconds: float

    @cached_property
    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = _decoded(self.metrics_json)
        return found

    @cached_property
    def curve(self) -> list[tuple[int, float]]:
        return _curve(self.curve_json)

    @cached_property
    def last_loss(self) -> float | None:
        """Of its curve; None without one."""
        last = self.curve_json.rfind("[")  # a list of pairs, so here the last pair begins
        if last < 1:
            return None
        loss: float = json.loads(self.curve_json[last:-1])[1]
        return loss


@dataclass(frozen=True, slots=True)
class Member:
    """A candidate's part in a generation. survives, rank, crowding: None until it is selected."""

    generation: int
    candidate: int
    role: str
    survives: bool | None
    rank: int | None
    crowding: float | None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A slot on which nothing new starts. kind: lost (its GPU; what runs on it is ended), unknown
    (the driver does not answer), foreign (somebody else is on it), or suspect (too many attempts
    in a row were lost on it)."""

    slot: str
    kind: str
    reason: str
    since: float


@dataclass(frozen=True)
class Decision:
    generation: int
    kind: str
    stage: str
    payload_json: str

    @cached_property
    def payload(self) -> dict[str, Any]:
        found: dict[str, Any] = _decoded(self.payload_json)
        return found


@dataclass(frozen=True)
class Injection:
    """A genotype that a person made. generation: that it was bred with, None while it waits;
    candidate: None too if it was not born, because its genotype had been by then."""

    id: int
    genotype_json: str
    hash: str
    generation: int | None
    candidate: int | None

    @property
    def genotype(self) -> Genotype:
        return Genotype.from_json(json.loads(self.genotype_json))


@dataclass(frozen=True, slots=True)
class Granted:
    """A request that was accepted, and what was answered."""

    at: float
    action: str
    who: str
    why: str
    answer: str


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    at: float
    candidate: int | None
    attempt: int | None
    event: str
    source: str | None
    target: str | None
    stage: str | None
    detail: str


@dataclass(frozen=True)
class Snapshot:
    """whole: everything is in it, not only what is in play and the two newest generations. taken:
    the genotype hashes that are not free any more; read while a generation breeds. injections: all,
    or those that wait.
    ended_slot_seconds: of all attempts ever.
    """

    whole: bool
    experiment: Experiment
    generations: tuple[Generation, ...]
    candidates: dict[int, Candidate]
    attempts: tuple[Attempt, ...]
    leases: dict[str, int]
    results: dict[tuple[int, str], StageResult]
    decisions: tuple[Decision, ...]
    members: tuple[Member, ...]
    quarantine: dict[str, Quarantine]
    injections: tuple[Injection, ...]
    taken: frozenset[str]
    ended_slot_seconds: float

    @property
    def generation(self) -> Generation | None:
        """The newest one."""
        return self.generations[-1] if self.generations else None

    @property
    def baseline(self) -> Candidate:
        return next(one for one in self.candidates.values() if one.is_baseline)

    @property
    def live_attempts(self) -> tuple[Attempt, ...]:
        return tuple(attempt for attempt in self.attempts if attempt.live)

    def born_in(self, generation: int) -> list[Candidate]:
        return [one for one in self.candidates.values() if one.generation == generation]

    def stopped_in(self, generation: int) -> list[Candidate]:
        """Whom cutoffs have stopped, and who have not been trained on since."""
        stages = {
            number: made.stage
            for made in self.decisions
            if (made.generation, made.kind) == (generation, "cutoff")
            for number in made.payload["cut"]
        }
        return [
            one
            for one in self.born_in(generation)
            if one.state is State.CUT and one.stage == stages.get(one.id)
        ]

    def survivors(self, generation: int) -> list[int]:
        return [m.candidate for m in self.members if m.generation == generation and m.survives]

    def scores(self, candidate: int) -> dict[str, float] | None:
        """exact_match and f1 in percent, None before the candidate is scored."""
        if self.candidates[candidate].state is not State.SCORED:
            return None
        # It stays at the last stage of its ladder, which is the one that scores.
        return self.results[candidate, self.candidates[candidate].stage].metrics

    def quality(self, candidate: int) -> float | None:
        """The first objective, (F1 + EM) / 2 in percent (thesis 4.2.5)."""
        scores = self.scores(candidate)
        return None if scores is None else (scores["f1"] + scores["exact_match"]) / 2

    def size(self, candidate: int) -> float:
        """The second objective, parameters of the baseline / parameters of the candidate."""
        return self.baseline.parameters / self.candidates[candidate].parameters

    @property
    def hours_unit(self) -> str:
        """Of the ledger: by the slots that the config lists, or that attempts have held."""
        listed = self.experiment.config["slots"]["devices"]
        held = (slot for attempt in self.attempts for slot in attempt.slots)
        return hours_unit(held if listed == "auto" else listed)

    def gpu_hours(self, now: float) -> float:
        """The ledger: slots x hours held, summed over all attempts; live ones up to `now`."""
        live = sum(len(one.slots) * max(0.0, now - one.started_at) for one in self.live_attempts)
        return (self.ended_slot_seconds + live) / 3600


@contextmanager
def opened(state: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection to the database of a state folder; raises NasdError without one."""
    path = state / "nasd.db"
    try:
        if not path.exists():
            raise NoExperiment(state)
        with readable(path) as connection:
            if not check_schema(connection, path):
                raise NoExperiment(state)
            yield connection
    except sqlite3.DatabaseError as error:
        raise NasdError(unreadable(path, error)) from error
    except PermissionError as error:
        raise NasdError(f"{path} cannot be read: {error.strerror}") from error


def check_schema(connection: sqlite3.Connection, path: Path, reading: bool = True) -> bool:
    """Whether the tables stand; they do not if their making was cut short.

    Raises NasdError if this is no database of nasd's, or one of a newer nasd; for reading, also if
    it is one of an older nasd, which a writer would bring up to date.
    """
    try:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError as error:
        raise NasdError(unreadable(path, error)) from error
    if not any(table for table in tables if not table.startswith(("_sqlite_", "sqlite_"))):
        return False
    if "_sqlite_migrations" not in tables or "experiment" not in tables:
        raise NasdError(f"{path} is not a database of nasd's: choose another experiment.state")
    query = "SELECT count(*) FROM _sqlite_migrations WHERE migration_set = 'nasd'"
    found = connection.execute(query).fetchone()[0]
    if found < SCHEMA and reading:
        raise OlderSchema(path, found)
    if found > SCHEMA:
        raise NasdError(
            f"{path} was written by a newer nasd (schema {found}, this one knows {SCHEMA}):"
            " upgrade nasd, or choose another experiment.state"
        )
    return True


def read(
    connection: sqlite3.Connection, whole: bool = True, lines: Iterable[int] | None = None
) -> Snapshot:
    """Everything, or what is in play, as of one instant (one read transaction). lines: of these
    candidates, all that they descend from, and the baseline, with all generations, and what was
    decided in those that these were born in; attempts and members are of these alone."""
    connection.execute("BEGIN")
    try:
        return _read(connection, whole and lines is None, lines)
    except (ValueError, KeyError, TypeError) as error:  # what a row holds is not what was written
        file = Path(connection.execute("PRAGMA database_list").fetchone()[2])
        raise NasdError(damaged(file, f"{type(error).__name__}: {error}")) from error
    finally:
        if connection.in_transaction:  # SQLite leaves it where it finds a damaged page
            connection.execute("ROLLBACK")


def events(
    connection: sqlite3.Connection, last: int = 10, candidate: int | None = None
) -> list[LoggedEvent]:
    """The newest events, of all or of one candidate, oldest first."""
    chosen = "" if candidate is None else " WHERE candidate = :candidate"
    rows = connection.execute(
        "SELECT at, candidate, attempt, event, source, target, stage, detail FROM event"
        f"{chosen} ORDER BY id DESC LIMIT :last",
        {"candidate": candidate, "last": last},
    ).fetchall()
    return [LoggedEvent(*row) for row in reversed(rows)]


def of_candidate(connection: sqlite3.Connection, number: int) -> tuple[Candidate, list[Attempt]]:
    """A candidate that there is, and its attempts, oldest first, as of one instant."""
    connection.execute("BEGIN")
    try:
        query = f"SELECT {_CANDIDATE} FROM candidate WHERE id = ?"
        candidate = _candidate(connection.execute(query, (number,)).fetchone())
        query = f"SELECT {_ATTEMPT} FROM attempt WHERE candidate = ? ORDER BY id"
        return candidate, [_attempt(row) for row in connection.execute(query, (number,))]
    finally:
        connection.execute("ROLLBACK")


def selections(connection: sqlite3.Connection, last: int = 30) -> list[tuple[int, float, float]]:
    """(generation, hypervolume, best quality in percent) of the newest selections, oldest first;
    0 where nobody was scored."""
    rows = connection.execute(
        "SELECT generation, payload ->> 'hypervolume', (SELECT coalesce(max(value ->> 0), 0.0)"
        " FROM json_each(payload, '$.points')) FROM decision WHERE kind = 'select'"
        " ORDER BY generation DESC LIMIT ?",
        (last,),
    ).fetchall()
    return rows[::-1]


def answer(connection: sqlite3.Connection, request: str) -> tuple[bool, str] | None:
    """Whether a request was accepted, and the answer in words; None before it is answered."""
    row = connection.execute(
        "SELECT accepted, answer FROM request WHERE id = ?", (request,)
    ).fetchone()
    return None if row is None else (bool(row[0]), row[1])


def granted(connection: sqlite3.Connection, *actions: str) -> list[Granted]:
    """The accepted requests for one of these actions, in the order in which they were answered."""
    rows = connection.execute(
        "SELECT answered_at, action, who, why, answer FROM request WHERE accepted"
        f" AND action IN ({', '.join('?' * len(actions))}) ORDER BY answered_at, id",
        actions,
    )
    return [Granted(*row) for row in rows]


def scored(connection: sqlite3.Connection) -> list[tuple[int, float, int]]:
    """(candidate, quality, parameters) of every scored candidate, the baseline included."""
    return connection.execute(
        "SELECT c.id, ((r.metrics ->> 'f1') + (r.metrics ->> 'exact_match')) / 2, c.parameters"
        " FROM candidate c JOIN result r ON r.candidate = c.id AND r.stage = c.stage"
        " WHERE c.state = 'scored' ORDER BY c.id"
    ).fetchall()


def holdings(connection: sqlite3.Connection) -> Holdings:
    """Of all attempts that ever were."""
    found: dict[str, list[tuple[float, float]]] = {}
    query = "SELECT slots, started_at, coalesce(ended_at, 9e999) FROM attempt"
    for slots, *span in connection.execute(query):
        found.setdefault(slots, []).append((span[0], span[1]))
    return {tuple(json.loads(slots)): spans for slots, spans in found.items()}


def selected(connection: sqlite3.Connection) -> list[Selected]:
    """Of all generations that were."""
    rows = connection.execute(
        "SELECT number, opened_at, completed_at, payload ->> 'hypervolume',"
        " (SELECT max(value ->> 0) FROM json_each(payload -> 'points'))"
        " FROM generation JOIN decision ON generation = number AND kind = 'select'"
        " WHERE completed_at IS NOT NULL ORDER BY number"
    )
    return [Selected(*row) for row in rows]


@lru_cache(maxsize=2048)
def _decoded(text: str) -> Any:
    """From one turn to the next most texts are the same. Nobody changes what a snapshot holds."""
    return json.loads(text)


@lru_cache(maxsize=2048)
def _curve(text: str) -> list[tuple[int, float]]:
    return [(step, loss) for step, loss in json.loads(text)]


_CANDIDATE = (
    "id, generation, parent, genotype, hash, lineage, parameters, stage, state, reason,"
    " retried_after, (SELECT parentage.parent FROM parentage WHERE child = id AND place = 1),"
    " ancestry, operators"
)
_ATTEMPT = (
    "id, candidate, stage, number, state, slots, token, process, verdict, message, started_at,"
    " ended_at, reached"
)


def _candidate(row: Sequence[Any]) -> Candidate:
    """row: the columns of _CANDIDATE."""
    return Candidate(
        id=row[0],
        generation=row[1],
        parent=row[2],
        genotype_json=row[3],
        hash=row[4],
        lineage_json=row[5],
        parameters=row[6],
        stage=row[7],
        state=State(row[8]),
        reason=row[9],
        retried_after=row[10],
        second=row[11],
        ancestry=tuple(_decoded(row[12])),
        operators=tuple(_decoded(row[13])),
    )


def _attempt(row: Sequence[Any]) -> Attempt:
    """row: the columns of _ATTEMPT."""
    return Attempt(
        id=row[0],
        candidate=row[1],
        stage=row[2],
        number=row[3],
        state=AttemptState(row[4]),
        slots=tuple(_decoded(row[5])),
        token=row[6],
        process=None if row[7] is None else _decoded(row[7]),
        verdict=row[8],
        message=row[9],
        started_at=row[10],
        ended_at=row[11],
        reached=row[12],
    )


def _read(
    connection: sqlite3.Connection, whole: bool, lines: Iterable[int] | None = None
) -> Snapshot:
    def rows(query: str, *arguments: Any) -> Sequence[Any]:
        return connection.execute(query, arguments).fetchall()

    found = rows(
        "SELECT name, seed, config, backbone, prepared, state, reason, created_at, completed_at,"
        " resumed_after, hold, pause, pause_note, budget, slot_seconds FROM experiment"
    )
    if not found:
        file = connection.execute("PRAGMA database_list").fetchone()[2]
        raise NoExperiment(Path(file).parent)
    (name, seed, config, backbone, prepared, state, reason) = found[0][:7]
    (created, completed, resumed, hold, pause, pause_note, budget, slot_seconds) = found[0][7:]
    number = rows("SELECT coalesce(max(number), -1) FROM generation")[0][0]
    ever = whole or lines is not None  # all generations
    generations = tuple(
        Generation(number, Phase(phase), opened_at, completed_at)
        for number, phase, opened_at, completed_at in rows(
            "SELECT number, phase, opened_at, completed_at FROM generation WHERE number >= ?"
            " ORDER BY number",
            0 if ever else number - 1,
        )
    )
    newest = generations[-1] if generations else None
    # What is in play, by whose id; ?1 is the newest generation.
    play = (
        "IN (SELECT candidate FROM member WHERE generation = ?1"
        " UNION SELECT id FROM candidate WHERE generation IS NULL)"
    )
    everyone = "?1 = ?1"
    met = everyone  # the generations of which the decisions are read
    if lines is not None:
        asked = f"IN ({', '.join(str(int(one)) for one in lines)})"
        these = f"id {asked}"
        play = (
            "IN (WITH RECURSIVE line (id) AS ("
            f"SELECT id FROM candidate WHERE generation IS NULL OR {these}"
            " UNION SELECT parent FROM parentage JOIN line ON child = id)"
            f" SELECT id FROM line) AND {everyone}"
        )
        met = f"generation IN (SELECT generation FROM candidate WHERE {these}) AND {everyone}"
    one, owner = (everyone, everyone) if whole else (f"id {play}", f"candidate {play}")
    own = owner if lines is None else f"candidate {asked} AND {everyone}"
    return Snapshot(
        whole=whole,
        experiment=Experiment(
            name=name,
            seed=seed,
            config=json.loads(config),
            backbone=Backbone(**json.loads(backbone)),
            prepared=None if prepared is None else json.loads(prepared),
            state=state,
            reason=reason,
            created_at=created,
            completed_at=completed,
            resumed_after=resumed,
            hold=hold,
            pause=pause,
            pause_note=pause_note,
            budget_set=budget,
        ),
        generations=generations,
        candidates={
            row[0]: _candidate(row)
            for row in rows(f"SELECT {_CANDIDATE} FROM candidate WHERE {one} ORDER BY id", number)
        },
        attempts=tuple(
            _attempt(row)
            for row in rows(f"SELECT {_ATTEMPT} FROM attempt WHERE {own} ORDER BY id", number)
        ),
        leases=dict(rows("SELECT slot, attempt FROM lease")),
        results={
            (row[0], row[1]): StageResult(*row)
            for row in rows(
                "SELECT candidate, stage, metrics, curve, steps, seconds FROM result"
                f" WHERE {owner} ORDER BY at",
                number,
            )
        },
        decisions=tuple(
            Decision(*row)
            for row in rows(
                "SELECT generation, kind, stage, payload FROM decision WHERE generation >= ?2"
                f" AND {met} ORDER BY id",
                number,
                0 if ever else number,
            )
        ),
        members=tuple(
            Member(g, c, role, None if survives is None else bool(survives), rank, crowding)
            for g, c, role, survives, rank, crowding in rows(
                "SELECT generation, candidate, role, survives, rank, crowding FROM member"
                # The parents' ranks stand in the generation before.
                f" WHERE generation >= ?2 AND {everyone if lines is None else own}"
                " ORDER BY generation, candidate",
                number,
                0 if ever else number - 1,
            )
        ),
        quarantine={
            row[0]: Quarantine(*row)
            for row in rows("SELECT slot, kind, reason, since FROM quarantine ORDER BY slot")
        },
        injections=tuple(
            Injection(*row)
            for row in rows(
                "SELECT id, genotype, hash, generation, candidate FROM injection"
                f" WHERE {'true' if whole else 'generation IS NULL'} ORDER BY id"
            )
        ),
        taken=frozenset(
            row[0]
            for row in (
                rows("SELECT hash FROM candidate")
                if whole or (newest is not None and newest.phase is Phase.BREEDING)
                else ()
            )
        ),
        ended_slot_seconds=slot_seconds,
    )
