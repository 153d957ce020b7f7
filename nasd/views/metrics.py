"""A search in Prometheus's text format: what to draw over weeks, and to be woken up by.

Read with a few narrow queries, so that 10,000 candidates are no matter. Names and units are as
Prometheus asks: https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nasd.contract.errors import NasdError
from nasd.contract.protocol import Heartbeat, read, write_atomically
from nasd.record import daemon_lock, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, ExperimentState, State
from nasd.record.state import Snapshot
from nasd.search.objectives import OBJECTIVES

Labels = Mapping[str, str]
CONTENT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Metric:
    """name: without `nasd_`. values: by their labels, beside the experiment's."""

    name: str
    kind: str  # gauge or counter
    about: str
    values: list[tuple[Labels, float]] = field(default_factory=list)


def text(state: Path, now: float | None = None) -> str:
    """Raises NasdError if there is no search."""
    folder = StateFolder(state)
    with snapshot.opened(state) as connection:
        found = snapshot.read(connection, whole=False)
        metrics = list(_metrics(connection, found, folder, time.time() if now is None else now))
    experiment = {"experiment": found.experiment.name}
    return "".join(_lines(one, experiment) for one in metrics)


def keep(state: Path, file: Path, seconds: float) -> None:
    """Writes the file anew every so many seconds, whole, as node_exporter's textfile collector
    wants it."""
    while True:
        try:
            write_atomically(file, text(state).encode())
        except OSError as error:
            raise NasdError(f"--file: {file} cannot be written: {error.strerror}") from error
        time.sleep(seconds)


def _metrics(
    connection: sqlite3.Connection, found: Snapshot, folder: StateFolder, now: float
) -> Iterator[Metric]:
    experiment, generation = found.experiment, found.generation
    yield _one("up", "Whether a daemon serves the search.", daemon_lock.held(folder.lock))
    yield Metric(
        "state",
        "gauge",
        "1 for what the search is.",
        [({"state": one}, float(experiment.state is one)) for one in ExperimentState],
    )
    yield _one("paused", "Whether a person has paused or drained it.", bool(experiment.pause))
    yield _one("on_hold", "Whether it waits for the disk.", bool(experiment.hold))
    yield _one("generation", "The newest one.", -1 if generation is None else generation.number)
    last = experiment.config["experiment"]["generations"]
    yield _one("generations", "The number of the last one.", last)
    yield _counts(
        "candidates",
        "Candidates by their state.",
        "state",
        State,
        connection,
        "SELECT state, count(*) FROM candidate WHERE kind = 'candidate' GROUP BY state",
    )
    yield _counts(
        "attempts",
        "Attempts by their state.",
        "state",
        AttemptState,
        connection,
        "SELECT state, count(*) FROM attempt GROUP BY state",
    )
    yield Metric(
        "slot_hours_total",
        "counter",
        f"{found.hours_unit} that attempts have held slots for.",
        [({}, found.gpu_hours(now))],
    )
    budget = experiment.budget(experiment.config["experiment"]["budget_gpu_hours"])
    if budget is not None:
        yield _one("budget_slot_hours", "What may be spent of them.", budget)
    yield _one("slots_leased", "Slots that attempts hold.", len(found.leases))
    yield _one(
        "slots_quarantined",
        "Slots that are left alone; a GPU that attempts share counts once.",
        len(found.quarantine),
    )
    share = experiment.config["slots"].get("share", 1)
    yield _one("slots_share", "How many attempts share each GPU.", share)
    yield from _gained(connection, found)
    beats = []
    for one in found.live_attempts:
        with suppress(NasdError):
            beats.append(now - read(Heartbeat, folder.attempt(one.id).heartbeat).at)
    yield _one(
        "heartbeat_age_seconds",
        "Of the live attempt that is silent longest.",
        max(beats, default=0),
    )
    at = connection.execute("SELECT coalesce(max(at), 0) FROM event").fetchone()[0]
    yield _one("last_event_timestamp_seconds", "When anything happened last.", at)


def _gained(connection: sqlite3.Connection, found: Snapshot) -> Iterator[Metric]:
    """The best value of each objective, the baseline's, and the newest hypervolume."""
    scored, baseline = snapshot.scored(connection), found.baseline
    best = Metric("best", "gauge", "The best of all candidates, by objective, in its unit.")
    base = Metric("baseline", "gauge", "The baseline, by objective, in its unit.")
    for name in found.experiment.objectives:
        objective = OBJECTIVES[name]
        told = {
            one.id: value
            for one in scored
            if (value := objective.value(one, one.metrics, baseline)) is not None
        }
        own = told.pop(baseline.id, None)
        if own is not None:
            base.values.append(({"objective": name}, own))
        if told:
            choose = max if objective.direction == "highest" else min
            best.values.append(({"objective": name}, choose(told.values())))
    yield best
    yield base
    if selections := snapshot.selections(connection, 1):
        yield _one("hypervolume", "Of the newest selection.", selections[-1][1])


def _one(name: str, about: str, value: float) -> Metric:
    return Metric(name, "gauge", about, [({}, float(value))])


def _counts(
    name: str,
    about: str,
    label: str,
    among: Iterable[str],
    connection: sqlite3.Connection,
    query: str,
) -> Metric:
    counts = dict(connection.execute(query).fetchall())
    values: list[tuple[Labels, float]] = [
        ({label: str(one)}, float(counts.get(str(one), 0))) for one in among
    ]
    return Metric(name, "gauge", about, values)


def _lines(metric: Metric, experiment: Labels) -> str:
    if not metric.values:
        return ""
    name = f"nasd_{metric.name}"
    lines = [f"# HELP {name} {metric.about}", f"# TYPE {name} {metric.kind}"]
    for labels, value in metric.values:
        inside = ",".join(
            f'{key}="{_escaped(one)}"' for key, one in {**experiment, **labels}.items()
        )
        lines.append(f"{name}{{{inside}}} {value!r}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
