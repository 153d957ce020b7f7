"""Finds the candidate that a person means: by its number, or as `baseline`, or as `best`."""

import sqlite3

from nasd.errors import NasdError
from nasd.lifecycle import State
from nasd.readable import shown
from nasd.snapshot import Candidate, Snapshot

BASELINE, BEST = "baseline", "best"


def find(snap: Snapshot, name: str) -> Candidate:
    """The candidate of that name; raises NasdError if there is none. snap: the whole search."""
    assert snap.whole
    if name == BASELINE:
        return snap.baseline
    if name == BEST:
        return _best(snap)
    if not (name.isascii() and name.isdigit()):
        raise NasdError(
            f"there is no candidate {shown(name)}: give its number, or {BASELINE}, or {BEST}"
        )
    candidate = snap.candidates.get(int(name)) if len(name) < 20 else None  # of 64 bits
    if candidate is None:
        told = name if len(name) < 20 else shown(name)
        raise NasdError(
            f"there is no candidate {told}: they have the numbers"
            f" {min(snap.candidates)} to {max(snap.candidates)}"
        )
    return candidate


def _best(snap: Snapshot) -> Candidate:
    """The best quality, the baseline's included; of equals the smallest, then the oldest."""
    scored = [one for one in snap.candidates.values() if one.state is State.SCORED]
    if not scored:
        raise NasdError("no candidate has a score yet: `nasd status` shows how far the search is")
    return max(scored, key=lambda one: (snap.quality(one.id) or 0.0, -one.parameters, -one.id))


def names(connection: sqlite3.Connection, scored: bool = False) -> list[tuple[str, str]]:
    """Every name that `find` knows, or those of scored candidates, each with what it stands for."""
    rows = connection.execute(
        "SELECT id, generation, state, stage, quality FROM"
        " (SELECT c.*, ((r.metrics ->> 'f1') + (r.metrics ->> 'exact_match')) / 2 AS quality"
        " FROM candidate c LEFT JOIN result r ON c.state = 'scored' AND r.candidate = c.id"
        f" AND r.stage = c.stage) {'WHERE quality IS NOT NULL ' if scored else ''}ORDER BY id"
    ).fetchall()
    found = [
        (BASELINE if generation is None else str(number), _what(generation, state, stage, quality))
        for number, generation, state, stage, quality in rows
    ]
    best = max((row[-1] for row in rows if row[-1] is not None), default=None)
    return found if best is None else [*found, (BEST, f"quality {best:.2f}")]


def _what(generation: int | None, state: str, stage: str, quality: float | None) -> str:
    whence = "" if generation is None else f"generation {generation}, "
    return f"{whence}{state}, " + (f"at {stage}" if quality is None else f"quality {quality:.2f}")
