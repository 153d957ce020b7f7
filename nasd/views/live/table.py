"""All candidates as the live page shows them, kept up to date by the events that came since.

A whole search is read once, and then only who had an event: with 10,000 candidates an update is a
matter of milliseconds. The columns are narrow: who wants more of a candidate asks for its page.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nasd.contract import tasks
from nasd.contract.readable import share_of_baseline
from nasd.record import snapshot
from nasd.record.lifecycle import State
from nasd.record.state import decoded
from nasd.search import objectives
from nasd.search.objectives import OBJECTIVES, QUALITY
from nasd.search.pareto import Point
from nasd.views.status import standing

COLUMNS = ("id", "generation", "parent", "kind", "state", "stage", "percent", "values", "reason")
MOST = 500  # candidates asked for by number at once; beyond, all are read again
_QUERY = (
    "SELECT c.id, c.generation, c.parent, c.kind, c.state, c.stage, c.parameters, c.figures,"
    " c.reason, r.metrics FROM candidate c"
    " LEFT JOIN result r ON r.candidate = c.id AND r.stage = c.stage"
)


@dataclass(frozen=True, slots=True)
class _Model:
    """As much of a candidate as objectives are worked out from."""

    parameters: int
    figures: Mapping[str, float]


@dataclass
class Table:
    """Of a state folder. seen: the last event that is in it."""

    state: Path
    seen: int = 0
    rows: dict[int, list[Any]] = field(default_factory=dict)
    changed: dict[int, int] = field(default_factory=dict)  # by candidate: the event that did
    front: list[int] = field(default_factory=list)
    _points: dict[int, Point] = field(default_factory=dict)
    _names: tuple[str, ...] = ()
    _base: _Model | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def since(self, event: int) -> dict[str, Any]:
        """The rows that have changed behind that event; all of them behind 0."""
        with self._lock:
            self._look()
            whole = event <= 0 or event > self.seen
            rows = [
                row for number, row in self.rows.items() if whole or self.changed[number] > event
            ]
            return {
                "event": self.seen,
                "whole": whole,
                "columns": COLUMNS,
                "objectives": [_axis(name) for name in self._shown],
                "rows": rows,
                "front": self.front,
            }

    def _look(self) -> None:
        with snapshot.opened(self.state) as connection:
            connection.execute("BEGIN")
            try:
                newest = connection.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0]
                if newest < self.seen:  # another search, or one taken back to a backup
                    self.seen = 0
                if newest > self.seen:
                    self._read(connection, newest)
            finally:
                connection.execute("ROLLBACK")

    def _read(self, connection: sqlite3.Connection, newest: int) -> None:
        asked: Sequence[int] | None = None
        if self.seen:
            asked = [
                row[0]
                for row in connection.execute(
                    "SELECT DISTINCT candidate FROM event WHERE id > ? AND candidate NOT NULL",
                    (self.seen,),
                )
            ]
        if asked is None or len(asked) > MOST:
            asked = None
            self.rows.clear()
            self._points.clear()
            names = connection.execute("SELECT config FROM experiment").fetchone()[0]
            found = json.loads(names)["experiment"].get("objectives")
            self._names = tuple(found or (QUALITY.name, objectives.COMPRESSION.name))
        before = len(self._points)
        query = _QUERY + " ORDER BY c.id"
        numbers: tuple[int, ...] = ()
        if asked is not None:
            numbers = tuple(asked)
            query = f"{_QUERY} WHERE c.id IN ({', '.join('?' * len(numbers))})"
        for row in connection.execute(query, numbers):
            self._take(row, newest)
        if asked is None or len(self._points) != before:
            order = standing.ranks(list(self._points.values()))
            self.front = [one for one, rank in zip(self._points, order, strict=True) if rank == 0]
        self.seen = newest

    @property
    def _shown(self) -> tuple[str, ...]:
        """Compression is shown as the share of parameters, which has a column of its own."""
        return tuple(name for name in self._names if name != objectives.COMPRESSION.name)

    def _take(self, row: Sequence[Any], event: int) -> None:
        number, generation, parent, kind, state, stage, parameters, figures, reason, metrics = row
        model = _Model(parameters, decoded(figures))
        if generation is None and self._base is None:
            self._base = model
        base = self._base or model
        scored = state == State.SCORED and kind != "screening" and metrics is not None
        told = json.loads(metrics) if scored else {}
        values = [_rounded(OBJECTIVES[name].value(model, told, base)) for name in self._shown]
        percent = share_of_baseline(base.parameters / parameters)
        self.rows[number] = [
            *(number, generation, parent, kind, state, stage),
            *(_rounded(percent), values if scored else None, reason),
        ]
        self.changed[number] = event
        if scored and kind == "candidate":
            point = objectives.point(self._names, model, told, base)
            if point is not None:
                self._points[number] = point


def _axis(name: str) -> dict[str, str]:
    one = OBJECTIVES[name]
    return {"name": one.name, "unit": one.unit, "direction": one.direction, "words": one.words}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def losses(state: Path, generation: int) -> dict[str, Any]:
    """The evaluation losses of a generation's candidates in MLM, all stages in a row; where there
    is no MLM, those of the stages that train for the score."""
    with snapshot.opened(state) as connection:
        config = json.loads(connection.execute("SELECT config FROM experiment").fetchone()[0])
        trained = [one for one in config["stages"] if one["train"] in ("new", "all")]
        ranking = [one for one in trained if tasks.of(one["task"]).ranks]
        names = [one["name"] for one in ranking or trained]
        rows: Iterable[Any] = connection.execute(
            "SELECT r.candidate, r.stage, r.curve, r.steps FROM result r"
            " JOIN candidate c ON c.id = r.candidate"
            " WHERE c.generation = ? AND c.kind = 'candidate'"
            f" AND r.stage IN ({', '.join('?' * len(names))}) ORDER BY r.candidate, r.at",
            (generation, *names),
        ).fetchall()
    found: dict[int, list[list[float]]] = {}
    offsets: dict[int, int] = {}
    for candidate, _, curve, steps in rows:
        offset = offsets.get(candidate, 0)
        line = found.setdefault(candidate, [])
        line += [[offset + step, _rounded(loss) or 0.0] for step, loss in json.loads(curve)]
        offsets[candidate] = offset + steps
    curves = {candidate: line for candidate, line in found.items() if line}
    return {"generation": generation, "curves": curves}
