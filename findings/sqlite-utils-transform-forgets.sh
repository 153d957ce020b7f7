#!/usr/bin/env bash
# sqlite-utils 4.2.1: table.transform, which renames a column by making the table anew, keeps checks,
# keys and STRICT. It leaves out what else stood there, without a word: a generated column goes with
# all its values, a trigger of the table no longer fires, and a column that compared without regard
# to case tells cases apart, so that a look-up of before finds no row. None of the three has to do
# with the column that is renamed. (A partial index it refuses to lose, by an error.)
# Seen: columns id name stage hours days, then id name step hours; 1 row found, then 0; 1 trigger, then 0
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check sqlite-utils==4.2.1
"$there/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import sqlite_utils

base = sqlite_utils.Database(memory=True)
base.execute(
    "CREATE TABLE run (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, stage TEXT,"
    " hours REAL CHECK (hours >= 0), days REAL GENERATED ALWAYS AS (hours / 24) STORED)"
)
base.execute("CREATE TABLE log (line TEXT)")
base.execute(
    "CREATE TRIGGER told AFTER UPDATE ON run BEGIN INSERT INTO log VALUES (new.name); END"
)
base.execute("INSERT INTO run (name, stage, hours) VALUES ('Alpha', 'finetune', 48)")


def seen():
    columns = [row[1] for row in base.execute("PRAGMA table_xinfo(run)")]
    found = base.execute("SELECT count(*) FROM run WHERE name = 'alpha'").fetchone()[0]
    return columns, found, len(base["run"].triggers)


before = seen()
base["run"].transform(rename={"stage": "step"})
after = seen()
print(f"sqlite-utils {version('sqlite-utils')}: columns, rows found, triggers")
print(f"  before {before}\n  after  {after}")
assert "CHECK" in base["run"].schema
sys.exit(
    not (
        before == (["id", "name", "stage", "hours", "days"], 1, 1)
        and after == (["id", "name", "step", "hours"], 0, 0)
    )
)
PY
