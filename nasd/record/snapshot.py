"""What the database says, read in one go: the input of every decision and of every view.

Read-only, and standard library alone, so that `nasd status` starts fast. Writing is the store's.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone
from nasd.contract.objectives import DEFAULT
from nasd.record.database_file import damaged, readable, unreadable
from nasd.record.lifecycle import (
    AttemptState,
    AttemptVerdict,
    CandidateKind,
    DecisionKind,
    ExperimentState,
    Phase,
    QuarantineKind,
    State,
)
from nasd.record.state import (
    Attempt,
    Candidate,
    Experiment,
    Generation,
    Granted,
    Holdings,
    Injection,
    LoggedEvent,
    Member,
    Mutant,
    Quarantine,
    Recorded,
    Scored,
    Selected,
    Snapshot,
    StageResult,
    decoded,
)
from nasd.search.objectives import QUALITY

SCHEMA = 9  # how many migrations this version of nasd knows


class NoExperiment(NasdError):
    def __init__(self, state: Path) -> None:
        super().__init__(f"{state} holds no experiment yet: start one with `nasd run`")


class OlderSchema(NasdError):
    def __init__(self, path: Path, found: int) -> None:
        super().__init__(
            f"{path} was written by an older nasd (schema {found}, this one knows {SCHEMA}):"
            " `nasd run` brings it up to date, after a backup"
        )


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
    with _one_instant(connection):
        if lines is None:
            return _read(connection, _WHOLE if whole else _IN_PLAY, [])
        return _read(connection, _LINES, [int(one) for one in lines])


def counted(connection: sqlite3.Connection) -> tuple[Snapshot, dict[int, int]]:
    """Everything but the attempts of those that are not in play any more, most of all rows; and
    how many attempts each candidate has had."""
    with _one_instant(connection):
        query = "SELECT candidate, count(*) FROM attempt GROUP BY candidate"
        return _read(connection, _COUNTED, []), dict(connection.execute(query).fetchall())


@contextmanager
def _one_instant(connection: sqlite3.Connection) -> Iterator[None]:
    """A read transaction."""
    connection.execute("BEGIN")
    try:
        yield
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
        f"SELECT generation, payload ->> 'hypervolume', coalesce({_BEST_QUALITY}, 0.0)"
        " FROM decision WHERE kind = 'select' ORDER BY generation DESC LIMIT ?",
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


def scored(connection: sqlite3.Connection) -> list[Scored]:
    """Every scored candidate, the baseline included."""
    rows = connection.execute(
        "SELECT c.id, c.parameters, r.metrics, c.figures"
        " FROM candidate c JOIN result r ON r.candidate = c.id AND r.stage = c.stage"
        " WHERE c.state = 'scored' AND c.kind = 'candidate' ORDER BY c.id"
    ).fetchall()
    metrics = json.loads(f"[{','.join(row[2] for row in rows)}]")  # as one text: quicker
    return [
        Scored(row[0], row[1], found, decoded(row[3]))
        for row, found in zip(rows, metrics, strict=True)
    ]


def holdings(connection: sqlite3.Connection) -> Holdings:
    """Of all attempts that ever were."""
    found: dict[str, list[tuple[float, float]]] = {}
    query = "SELECT slots, started_at, coalesce(ended_at, 9e999) FROM attempt"
    for slots, begun, ended in connection.execute(query):
        try:
            found[slots].append((begun, ended))
        except KeyError:
            found[slots] = [(begun, ended)]
    return {tuple(json.loads(slots)): spans for slots, spans in found.items()}


def selected(connection: sqlite3.Connection) -> list[Selected]:
    """Of all generations that were."""
    rows = connection.execute(
        f"SELECT number, opened_at, completed_at, payload ->> 'hypervolume', {_BEST_QUALITY}"
        " FROM generation JOIN decision ON generation = number AND kind = 'select'"
        " WHERE completed_at IS NOT NULL ORDER BY number"
    )
    return [Selected(*row) for row in rows]


# Of the points of a selection; null if there are none, or if it did not go by quality.
_BEST_QUALITY = (
    "(SELECT max(value ->> (SELECT key FROM"
    f" json_each(coalesce(payload -> 'objectives', '{json.dumps(DEFAULT)}'))"
    f" WHERE value = '{QUALITY.name}')) FROM json_each(payload, '$.points'))"
)

_CANDIDATE = (
    "id, generation, parent, genotype, hash, lineage, parameters, stage, state, reason,"
    " retried_after, (SELECT parentage.parent FROM parentage WHERE child = id AND place = 1),"
    " ancestry, operators, kind, untrained, figures"
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
        state=_STATES[row[8]],
        reason=row[9],
        retried_after=row[10],
        second=row[11],
        ancestry_json=row[12],
        operators=tuple(decoded(row[13])),
        kind=_KINDS[row[14]],
        untrained=row[15],
        figures_json=row[16],
    )


def _attempt(row: Sequence[Any]) -> Attempt:
    """row: the columns of _ATTEMPT, which are Attempt's fields in their order: by position, as
    there are tens of thousands of them."""
    number, candidate, stage, nth, state, slots, token, process, verdict, *rest = row
    return Attempt(
        number,
        candidate,
        stage,
        nth,
        _ATTEMPT_STATES[state],
        _slots(slots),
        token,
        None if process is None else decoded(process),
        _VERDICTS[verdict],
        *rest,
    )


_STATES = {one.value: one for one in State}  # quicker than the enum itself
_KINDS = {one.value: one for one in CandidateKind}
_PHASES = {one.value: one for one in Phase}
_ATTEMPT_STATES = {one.value: one for one in AttemptState}
_VERDICTS = {one.value: one for one in AttemptVerdict}


@lru_cache(maxsize=2048)
def _slots(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@dataclass(frozen=True, slots=True)
class _Part:
    """Which rows a snapshot holds: for each table the condition that they meet.

    They may name :newest, the newest generation, -1 before there is one; and :asked, ids of
    candidates as a JSON array.
    """

    whole: bool = False
    generations: str = "true"
    candidates: str = "true"
    attempts: str = "true"
    results: str = "true"
    decisions: str = "true"
    members: str = "true"
    injections: str = "true"


_WHOLE = _Part(whole=True)

_PLAYING = (
    "(SELECT candidate FROM member WHERE generation = :newest"
    " UNION SELECT id FROM candidate WHERE generation IS NULL"
    # By the index of those that are none of the population: all of them are few.
    " UNION SELECT id FROM candidate WHERE kind <> 'candidate'"
    " AND (kind = 'control' OR generation = :newest)"
    # Who was late in the generation before still inherits from its parents, or learns from one.
    " UNION SELECT candidate FROM member WHERE generation = :newest - 1 AND role = 'parent'"
    " AND EXISTS (SELECT 1 FROM decision WHERE generation = :newest - 1 AND kind = 'select'"
    " AND payload -> 'late' IS NOT NULL))"
)
_IN_PLAY = _Part(
    generations="number >= :newest - 1",
    candidates=f"id IN {_PLAYING}",
    attempts=f"candidate IN {_PLAYING}",
    results=f"candidate IN {_PLAYING}",
    decisions="generation >= :newest - 1 AND (generation >= :newest OR kind = 'select')",
    members="generation >= :newest - 1",  # the parents' ranks stand in the generation before
    injections="generation IS NULL",
)

_COUNTED = replace(_WHOLE, attempts=_IN_PLAY.attempts)

_ASKED = "(SELECT value FROM json_each(:asked))"
_LINE = (
    "(WITH RECURSIVE line (id) AS ("
    f"SELECT id FROM candidate WHERE generation IS NULL OR id IN {_ASKED}"
    " UNION SELECT id FROM candidate WHERE kind <> 'candidate' AND kind = 'control'"
    " UNION SELECT parent FROM parentage JOIN line ON child = id)"
    " SELECT id FROM line)"
)
_LINES = _Part(
    candidates=f"id IN {_LINE}",
    attempts=f"candidate IN {_ASKED}",
    results=f"candidate IN {_LINE}",
    decisions=f"generation IN (SELECT generation FROM candidate WHERE id IN {_ASKED})",
    members=f"candidate IN {_ASKED}",
    injections="generation IS NULL",
)

_Rows = Callable[[str], Sequence[Any]]  # what a query gives


def _read(connection: sqlite3.Connection, part: _Part, asked: Sequence[int]) -> Snapshot:
    query = "SELECT coalesce(max(number), -1) FROM generation"
    given = {"newest": connection.execute(query).fetchone()[0], "asked": json.dumps(asked)}

    def rows(query: str) -> Sequence[Any]:
        return connection.execute(query, given).fetchall()

    experiment = _experiment(rows)
    if experiment is None:
        file = connection.execute("PRAGMA database_list").fetchone()[2]
        raise NoExperiment(Path(file).parent)
    generations = _generations(rows, part)
    breeds = bool(generations) and generations[-1].phase is Phase.BREEDING
    return Snapshot(
        whole=part.whole,
        experiment=experiment,
        generations=generations,
        candidates=_candidates(rows, part),
        attempts=_attempts(rows, part),
        leases=dict(rows("SELECT slot, attempt FROM lease")),
        results=_results(rows, part),
        decisions=_decisions(rows, part),
        members=_members(rows, part),
        quarantine=_quarantine(rows),
        injections=_injections(rows, part),
        taken=_taken(rows) if part.whole or breeds else frozenset(),
        ended_slot_seconds=rows("SELECT slot_seconds FROM experiment")[0][0],
        mutants=_mutants(rows, "generation = :newest") if breeds else (),
    )


def mutants(connection: sqlite3.Connection, generation: int | None = None) -> list[Mutant]:
    """Whoever was tried untrained, in a generation or in all."""
    given = {"generation": generation}

    def rows(query: str) -> Sequence[Any]:
        return connection.execute(query, given).fetchall()

    return list(_mutants(rows, "true" if generation is None else "generation = :generation"))


def _mutants(rows: _Rows, which: str) -> tuple[Mutant, ...]:
    return tuple(
        Mutant(number, born, parent, second, genotype, lineage, tuple(decoded(operators)), *rest)
        for number, born, parent, second, genotype, lineage, operators, *rest in rows(
            "SELECT id, generation, parent, second, genotype, lineage, operators, parameters, loss,"
            f" candidate, figures FROM mutant WHERE {which} ORDER BY id"
        )
    )


def _experiment(rows: _Rows) -> Experiment | None:
    for name, seed, config, backbone, prepared, state, *rest in rows(
        "SELECT name, seed, config, backbone, prepared, state, reason, created_at, completed_at,"
        " resumed_after, hold, pause, pause_note, budget FROM experiment"
    ):
        return Experiment(
            name,
            seed,
            json.loads(config),
            Backbone(**json.loads(backbone)),
            None if prepared is None else json.loads(prepared),
            ExperimentState(state),
            *rest,
        )
    return None


def _generations(rows: _Rows, part: _Part) -> tuple[Generation, ...]:
    return tuple(
        Generation(number, _PHASES[phase], opened_at, completed_at)
        for number, phase, opened_at, completed_at in rows(
            "SELECT number, phase, opened_at, completed_at FROM generation"
            f" WHERE {part.generations} ORDER BY number"
        )
    )


def _candidates(rows: _Rows, part: _Part) -> dict[int, Candidate]:
    query = f"SELECT {_CANDIDATE} FROM candidate WHERE {part.candidates} ORDER BY id"
    return {row[0]: _candidate(row) for row in rows(query)}


def _attempts(rows: _Rows, part: _Part) -> tuple[Attempt, ...]:
    query = f"SELECT {_ATTEMPT} FROM attempt WHERE {part.attempts} ORDER BY id"
    return tuple(map(_attempt, rows(query)))


def _results(rows: _Rows, part: _Part) -> dict[tuple[int, str], StageResult]:
    query = (
        "SELECT candidate, stage, metrics, curve, steps, seconds, at FROM result"
        f" WHERE {part.results}"
    )
    # By when they came. They mostly lie so, which Python's sort makes use of and SQLite's does not.
    return {
        (row[0], row[1]): StageResult(*row[:-1]) for row in sorted(rows(query), key=itemgetter(-1))
    }


def _decisions(rows: _Rows, part: _Part) -> tuple[Recorded, ...]:
    return tuple(
        Recorded(generation, DecisionKind(kind), *rest)
        for generation, kind, *rest in rows(
            "SELECT generation, kind, stage, payload FROM decision"
            f" WHERE {part.decisions} ORDER BY id"
        )
    )


def _members(rows: _Rows, part: _Part) -> tuple[Member, ...]:
    return tuple(
        Member(
            *(generation, candidate, role),
            *(None if survives is None else bool(survives), rank, crowding),
        )
        for generation, candidate, role, survives, rank, crowding in rows(
            "SELECT generation, candidate, role, survives, rank, crowding FROM member"
            f" WHERE {part.members} ORDER BY generation, candidate"
        )
    )


def _quarantine(rows: _Rows) -> dict[str, Quarantine]:
    query = "SELECT slot, kind, reason, since FROM quarantine ORDER BY slot"
    return {
        slot: Quarantine(slot, QuarantineKind(kind), *rest) for slot, kind, *rest in rows(query)
    }


def _injections(rows: _Rows, part: _Part) -> tuple[Injection, ...]:
    query = (
        "SELECT id, genotype, hash, generation, candidate FROM injection"
        f" WHERE {part.injections} ORDER BY id"
    )
    return tuple(Injection(*row) for row in rows(query))


def _taken(rows: _Rows) -> frozenset[str]:
    """The hashes of all genotypes that were ever born."""
    return frozenset(row[0] for row in rows("SELECT hash FROM candidate"))
