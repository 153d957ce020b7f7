"""Checks of the state folder: its lock, its database and backups, and room for what will come."""

import shutil
import time
from collections.abc import Iterator

from nasd.control import backups, retention, unusable
from nasd.record import daemon_lock, database_file, privacy, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import ExperimentState
from nasd.record.state import PAUSED
from nasd.views.doctor.case import GB, Case, Finding


def state(case: Case) -> Iterator[Finding]:
    """Whether the state folder can be written, and whether its file system locks files."""
    here = case.state
    if not here.path.exists():
        yield Finding("state", "note", f"{here.path} is not there yet: the first run makes it")
        return
    if daemon_lock.held(here.lock):
        yield Finding("state", "good", f"a daemon serves {here.path}")
        return
    if (reason := unusable.unwritable(here)) is not None:
        yield Finding("state", "bad", f"{reason}, or choose another experiment.state")
        return
    with daemon_lock.hold(here.lock):
        yield Finding("state", "good", f"{here.path} can be written and locks")


def others(case: Case) -> Iterator[Finding]:
    """Whether the state folder is open to others: one that an older nasd made may be."""
    if case.state.path.exists() and (opened := privacy.opened(case.state.path)):
        yield Finding("state", "note", opened)


def experiment(case: Case) -> Iterator[Finding]:
    """Whether the database is sound and backed up, and whether the search says what it lacks."""
    here = case.state
    try:
        with snapshot.opened(here.path) as connection:
            found = snapshot.read(connection, whole=False)
            newest = snapshot.events(connection, 1)
            damage = database_file.fault(connection)
    except snapshot.NoExperiment:
        case.begun = False
        return
    case.backbone, case.baseline = found.experiment.backbone, found.baseline.genotype
    case.prepared = found.experiment.prepared
    case.newest_event = newest[0].at if newest else None
    if damage:
        yield Finding(
            "database",
            "bad",
            f"{here.database} is damaged ({damage}): stop nasd, and take the newest of"
            f" {here.backups} in its place",
        )
    else:
        yield Finding("database", "good", f"{here.database} is sound")
    age = backups.age(here, time.time())
    if age is None:
        yield Finding("backup", "note", f"there is none in {here.backups} yet")
    else:
        late = age > 2 * 3600 * case.config.daemon.backup_hours
        yield Finding(
            "backup", "note" if late else "good", f"the newest is {age / 3600:.1f} hours old"
        )
    if found.experiment.state is ExperimentState.HALTED:
        yield Finding("experiment", "bad", f"halted: {found.experiment.reason}")
    if pause := PAUSED.get(found.experiment.pause):
        text = f"{pause} {found.experiment.pause_note}: `nasd resume` goes on"
        yield Finding("experiment", "note", text)
    if found.experiment.hold:
        yield Finding("experiment", "bad", f"on hold: {found.experiment.hold}")
    for one in found.quarantine.values():
        yield Finding("slots", "bad", f"{one.slot} is left alone: {one.reason}")


def disk(case: Case) -> Iterator[Finding]:
    """Whether there is room now, and for the most that weights and checkpoints can take."""
    here = case.state
    home = next(path for path in (here.path, *here.path.parents) if path.exists())
    free = shutil.disk_usage(home).free
    reserve = case.config.daemon.disk_reserve_gb * GB
    if free < reserve:
        yield Finding(
            "disk",
            "bad",
            f"{home} has {free / GB:.1f} GB free, less than daemon.disk_reserve_gb ="
            f" {case.config.daemon.disk_reserve_gb:g}, so nothing would start: make room there, or"
            " choose another experiment.state",
        )
    if case.backbone is None or not case.devices:
        return
    bound = retention.bound(case.config, case.backbone, len(case.devices))
    there = _taken(here)
    fits = bound.total + reserve <= free + there
    yield Finding(
        "disk",
        "good" if fits else "note",
        f"weights and checkpoints take {bound.total / GB:.1f} GB at most: {bound.models} models of"
        f" up to {bound.largest_model / GB:.2f} GB, {bound.checkpoints / GB:.1f} GB of checkpoints;"
        f" they take {there / GB:.1f} GB now, and {free / GB:.1f} GB are free"
        + ("" if fits else ", so the search may have to stop and wait for space"),
    )


def _taken(state: StateFolder) -> int:
    """Bytes of weights and checkpoints that stand there now."""
    patterns = ("candidates/*/*/*", "attempts/*/result/*", "attempts/*/checkpoints/*/*")
    return sum(path.stat().st_size for pattern in patterns for path in state.path.glob(pattern))
