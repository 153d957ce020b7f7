"""The schema of state/nasd.db, as steps that commit together with their record.

Never edit a step that has landed: add one. `SCHEMA` counts them, so that an older nasd refuses a
newer database without importing anything heavy.
"""

import json

from nasd.contract.genotype import BlockLineage, ancestry
from nasd.record.lifecycle import AttemptState, Phase, State
from nasd.record.snapshot import SCHEMA
from nasd.record.sqlite import Database, Migrations

migrations = Migrations("nasd")


def _one_of(column: str, values: type[State] | type[AttemptState] | type[Phase]) -> str:
    return f"CHECK ({column} IN ({', '.join(repr(str(value)) for value in values)}))"


@migrations()
def m001_search(db: Database) -> None:
    statements = f"""
    CREATE TABLE experiment (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        name TEXT NOT NULL,
        seed INTEGER NOT NULL,
        config TEXT NOT NULL,
        backbone TEXT NOT NULL,
        prepared TEXT,
        state TEXT NOT NULL CHECK (state IN ('running', 'complete', 'halted')),
        reason TEXT NOT NULL DEFAULT '',
        created_at REAL NOT NULL,
        completed_at REAL,
        resumed_at REAL NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE generation (
        number INTEGER PRIMARY KEY CHECK (number >= 0),
        phase TEXT NOT NULL {_one_of("phase", Phase)},
        opened_at REAL NOT NULL,
        completed_at REAL
    ) STRICT;
    CREATE TABLE candidate (
        id INTEGER PRIMARY KEY,
        generation INTEGER REFERENCES generation,
        parent INTEGER REFERENCES candidate,
        genotype TEXT NOT NULL,
        hash TEXT NOT NULL UNIQUE,
        lineage TEXT NOT NULL,
        parameters INTEGER NOT NULL CHECK (parameters > 0),
        stage TEXT NOT NULL,
        state TEXT NOT NULL {_one_of("state", State)},
        reason TEXT NOT NULL DEFAULT '',
        CHECK ((generation IS NULL) = (parent IS NULL))
    ) STRICT;
    CREATE INDEX candidate_generation ON candidate (generation);
    CREATE INDEX candidate_state ON candidate (state);
    CREATE TABLE attempt (
        id INTEGER PRIMARY KEY,
        candidate INTEGER NOT NULL REFERENCES candidate,
        stage TEXT NOT NULL,
        number INTEGER NOT NULL,
        state TEXT NOT NULL {_one_of("state", AttemptState)},
        slots TEXT NOT NULL,
        token TEXT NOT NULL UNIQUE,
        process TEXT,
        verdict TEXT NOT NULL DEFAULT '',
        message TEXT NOT NULL DEFAULT '',
        started_at REAL NOT NULL,
        ended_at REAL,
        UNIQUE (candidate, stage, number),
        CHECK ((ended_at IS NULL) = (state IN ('starting', 'running')))
    ) STRICT;
    CREATE UNIQUE INDEX one_live_attempt ON attempt (candidate)
        WHERE state IN ('starting', 'running');
    CREATE TABLE lease (
        slot TEXT PRIMARY KEY,
        attempt INTEGER NOT NULL REFERENCES attempt
    ) STRICT;
    CREATE TABLE result (
        candidate INTEGER NOT NULL REFERENCES candidate,
        stage TEXT NOT NULL,
        attempt INTEGER NOT NULL REFERENCES attempt,
        metrics TEXT NOT NULL,
        curve TEXT NOT NULL,
        steps INTEGER NOT NULL,
        seconds REAL NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (candidate, stage)
    ) STRICT;
    CREATE TABLE decision (
        id INTEGER PRIMARY KEY,
        generation INTEGER NOT NULL REFERENCES generation,
        kind TEXT NOT NULL CHECK (kind IN ('breed', 'cutoff', 'select')),
        stage TEXT NOT NULL DEFAULT '',
        payload TEXT NOT NULL,
        at REAL NOT NULL,
        UNIQUE (generation, kind, stage)
    ) STRICT;
    CREATE TABLE member (
        generation INTEGER NOT NULL REFERENCES generation,
        candidate INTEGER NOT NULL REFERENCES candidate,
        role TEXT NOT NULL CHECK (role IN ('parent', 'offspring')),
        survives INTEGER CHECK (survives IN (0, 1)),
        rank INTEGER,
        crowding REAL,
        PRIMARY KEY (generation, candidate)
    ) STRICT;
    CREATE TABLE event (
        id INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        candidate INTEGER REFERENCES candidate,
        attempt INTEGER REFERENCES attempt,
        event TEXT NOT NULL,
        source TEXT,
        target TEXT,
        stage TEXT,
        detail TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE INDEX event_candidate ON event (candidate);
    """
    _execute(db, statements)


@migrations()
def m002_faults(db: Database) -> None:
    statements = """
    ALTER TABLE experiment ADD COLUMN hold TEXT NOT NULL DEFAULT '';
    ALTER TABLE attempt ADD COLUMN reached INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE attempt ADD COLUMN slot_seconds REAL
        GENERATED ALWAYS AS (json_array_length(slots) * (ended_at - started_at)) VIRTUAL;
    ALTER TABLE experiment ADD COLUMN slot_seconds REAL NOT NULL DEFAULT 0;
    ALTER TABLE experiment ADD COLUMN resumed_after INTEGER NOT NULL DEFAULT 0;
    UPDATE experiment SET resumed_after =
        (SELECT coalesce(max(id), 0) FROM attempt WHERE started_at < resumed_at);
    UPDATE experiment SET slot_seconds = (SELECT coalesce(sum(slot_seconds), 0.0) FROM attempt);
    CREATE TABLE quarantine (
        slot TEXT PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('lost', 'unknown', 'foreign', 'suspect')),
        reason TEXT NOT NULL,
        since REAL NOT NULL
    ) STRICT;
    """
    _execute(db, statements)


@migrations()
def m003_steering(db: Database) -> None:
    statements = """
    ALTER TABLE experiment ADD COLUMN pause TEXT NOT NULL DEFAULT ''
        CHECK (pause IN ('', 'pause', 'drain'));
    ALTER TABLE experiment ADD COLUMN pause_note TEXT NOT NULL DEFAULT '';
    ALTER TABLE experiment ADD COLUMN budget TEXT;
    ALTER TABLE candidate ADD COLUMN retried_after INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE request (
        id TEXT PRIMARY KEY,
        action TEXT NOT NULL,
        arguments TEXT NOT NULL,
        who TEXT NOT NULL,
        why TEXT NOT NULL,
        asked_at REAL NOT NULL,
        answered_at REAL NOT NULL,
        accepted INTEGER NOT NULL CHECK (accepted IN (0, 1)),
        answer TEXT NOT NULL
    ) STRICT;
    CREATE TABLE injection (
        id INTEGER PRIMARY KEY,
        genotype TEXT NOT NULL,
        hash TEXT NOT NULL UNIQUE,
        request TEXT NOT NULL REFERENCES request,
        generation INTEGER REFERENCES generation,
        candidate INTEGER REFERENCES candidate
    ) STRICT;
    """
    _execute(db, statements)


@migrations()
def m004_parentage(db: Database) -> None:
    """Two parents; each block's line of descent, by which their blocks are aligned; and which
    operators made a candidate."""
    statements = """
    CREATE TABLE parentage (
        child INTEGER NOT NULL REFERENCES candidate,
        place INTEGER NOT NULL CHECK (place IN (0, 1)),
        parent INTEGER NOT NULL REFERENCES candidate,
        PRIMARY KEY (child, place)
    ) STRICT;
    CREATE INDEX parentage_parent ON parentage (parent);
    INSERT INTO parentage SELECT id, 0, parent FROM candidate WHERE parent IS NOT NULL;
    ALTER TABLE candidate ADD COLUMN ancestry TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE candidate ADD COLUMN operators TEXT NOT NULL DEFAULT '[]';
    """
    _execute(db, statements)
    lines: dict[int, tuple[str, ...]] = {}
    for number, parent, text in db.execute(
        "SELECT id, parent, lineage FROM candidate ORDER BY id"
    ).fetchall():
        lineage = tuple(BlockLineage.from_json(block) for block in json.loads(text))
        founder = tuple(f"{number}.{index}" for index in range(len(lineage)))
        lines[number] = founder if parent is None else ancestry(lineage, number, [lines[parent]])
        db.execute(
            "UPDATE candidate SET ancestry = ? WHERE id = ?", (json.dumps(lines[number]), number)
        )


@migrations()
def m005_controls(db: Database) -> None:
    """Rows of candidates that are none of the population; and mutants that are tried untrained."""
    statements = """
    ALTER TABLE candidate ADD COLUMN kind TEXT NOT NULL DEFAULT 'candidate'
        CHECK (kind IN ('candidate', 'control', 'screening'));
    ALTER TABLE candidate ADD COLUMN untrained REAL;
    CREATE INDEX candidate_kind ON candidate (kind) WHERE kind <> 'candidate';
    CREATE TABLE mutant (
        id INTEGER PRIMARY KEY,
        generation INTEGER NOT NULL REFERENCES generation,
        parent INTEGER NOT NULL REFERENCES candidate,
        second INTEGER REFERENCES candidate,
        genotype TEXT NOT NULL,
        lineage TEXT NOT NULL,
        operators TEXT NOT NULL,
        parameters INTEGER NOT NULL,
        loss REAL,
        candidate INTEGER REFERENCES candidate
    ) STRICT;
    CREATE INDEX mutant_generation ON mutant (generation);
    ALTER TABLE decision RENAME TO decision_before;
    CREATE TABLE decision (
        id INTEGER PRIMARY KEY,
        generation INTEGER NOT NULL REFERENCES generation,
        kind TEXT NOT NULL CHECK (kind IN ('screen', 'breed', 'cutoff', 'select')),
        stage TEXT NOT NULL DEFAULT '',
        payload TEXT NOT NULL,
        at REAL NOT NULL,
        UNIQUE (generation, kind, stage)
    ) STRICT;
    INSERT INTO decision SELECT id, generation, kind, stage, payload, at FROM decision_before;
    DROP TABLE decision_before;
    """
    _execute(db, statements)


@migrations()
def m006_figures(db: Database) -> None:
    """What a genotype gives by itself, beside its parameters. Those of before have none: no search
    of theirs went by any."""
    statements = """
    ALTER TABLE candidate ADD COLUMN figures TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE mutant ADD COLUMN figures TEXT NOT NULL DEFAULT '{}';
    """
    _execute(db, statements)


@migrations()
def m007_several_cutoffs(db: Database) -> None:
    """Asynchronous rules decide on a rung more than once."""
    statements = """
    ALTER TABLE decision RENAME TO decision_before;
    CREATE TABLE decision (
        id INTEGER PRIMARY KEY,
        generation INTEGER NOT NULL REFERENCES generation,
        kind TEXT NOT NULL CHECK (kind IN ('screen', 'breed', 'cutoff', 'select')),
        stage TEXT NOT NULL DEFAULT '',
        payload TEXT NOT NULL,
        at REAL NOT NULL,
        nth INTEGER NOT NULL DEFAULT 0,
        UNIQUE (generation, kind, stage, nth)
    ) STRICT;
    INSERT INTO decision SELECT id, generation, kind, stage, payload, at, 0 FROM decision_before;
    DROP TABLE decision_before;
    """
    _execute(db, statements)


@migrations()
def m008_shares(db: Database) -> None:
    """A share of a GPU is a part of a slot's time, as its name says: nasd.contract.slots counts."""
    _execute(db, "ALTER TABLE attempt DROP COLUMN slot_seconds")


@migrations()
def m009_repeats(db: Database) -> None:
    """Who is to be selected is trained under further seeds first, and that is decided."""
    statements = """
    ALTER TABLE decision RENAME TO decision_before;
    CREATE TABLE decision (
        id INTEGER PRIMARY KEY,
        generation INTEGER NOT NULL REFERENCES generation,
        kind TEXT NOT NULL CHECK (kind IN ('screen', 'breed', 'cutoff', 'repeat', 'select')),
        stage TEXT NOT NULL DEFAULT '',
        payload TEXT NOT NULL,
        at REAL NOT NULL,
        nth INTEGER NOT NULL DEFAULT 0,
        UNIQUE (generation, kind, stage, nth)
    ) STRICT;
    INSERT INTO decision SELECT id, generation, kind, stage, payload, at, nth FROM decision_before;
    DROP TABLE decision_before;
    """
    _execute(db, statements)


def _execute(db: Database, statements: str) -> None:
    for statement in statements.split(";"):
        if statement.strip():
            db.execute(statement)


assert len(migrations._migrations) == SCHEMA
